from __future__ import annotations

import time
from collections import Counter, OrderedDict
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from app.metrics import Metrics
from app.recorder import Recorder
from mlops.records import Outcome, id_time

_LATE_SECONDS = 30 * 24 * 3600.0
_REMEMBERED = 100_000


class OutcomeIn(BaseModel):
    model_config = ConfigDict(extra="forbid")
    id: Annotated[str, Field(max_length=64, description="the id that /predict returned")]
    value: Annotated[float, Field(allow_inf_nan=False, description="what became true: 0 or 1, or the number")]


class OutcomesIn(BaseModel):
    model_config = ConfigDict(extra="forbid")
    outcomes: Annotated[list[OutcomeIn], Field(min_length=1, max_length=10_000)]


class OutcomesOut(BaseModel):
    """How many were `accepted`, `late` (over 30 days; kept), `duplicate` (passed over), `contradictory` (kept: the
    last one counts) and `unknown` (no id of a prediction; passed over)."""

    results: dict[str, int]
    unknown: list[str]


class Outcomes:
    """Receives outcomes. What one replica cannot know (another's duplicates), the reader of the log sorts out alike."""

    def __init__(self, recorder: Recorder, metrics: Metrics):
        self._recorder, self._metrics = recorder, metrics
        self._recent: OrderedDict[str, float] = OrderedDict()

    def receive(self, outcomes: list[OutcomeIn]) -> OutcomesOut:
        now = time.time()
        results: Counter[str] = Counter()
        unknown = []
        for outcome in outcomes:
            result = self._result(outcome, now)
            results[result] += 1
            self._metrics.outcomes.labels(result).inc()
            if result == "unknown":
                unknown.append(outcome.id)
            elif result != "duplicate":
                self._recorder.add(Outcome(outcome.id, outcome.value, now))
                self._recent[outcome.id] = outcome.value
                if len(self._recent) > _REMEMBERED:
                    self._recent.popitem(last=False)
        return OutcomesOut(results=results, unknown=unknown)

    def _result(self, outcome: OutcomeIn, now: float) -> str:
        made = id_time(outcome.id)
        if made is None or made > now + 60:
            return "unknown"
        if outcome.id in self._recent:
            return "duplicate" if self._recent[outcome.id] == outcome.value else "contradictory"
        return "late" if now - made > _LATE_SECONDS else "accepted"
