import time
from collections import Counter, OrderedDict
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from app.metrics import Metrics
from app.predict import invalid
from app.prediction_log import PredictionLog
from app.watcher import Watcher
from mlops.log_schema import OutcomeRecord, id_time

_LATE_SECONDS = 30 * 24 * 3600.0
_REMEMBERED = 100_000


class OutcomeIn(BaseModel):
    model_config = ConfigDict(extra="forbid")
    id: Annotated[str, Field(max_length=64, description="the id that /predict returned")]
    value: Annotated[float, Field(allow_inf_nan=False, description="the true value: 0 or 1, or the number")]


class OutcomesIn(BaseModel):
    model_config = ConfigDict(extra="forbid")
    outcomes: Annotated[list[OutcomeIn], Field(min_length=1, max_length=10_000)]


class OutcomesOut(BaseModel):
    """How many were `accepted`, `late` (over 30 days; kept), `duplicate` (ignored), `contradictory` (kept: the last one
    counts) and `unknown` (not the id of a prediction; ignored)."""

    results: dict[str, int]
    unknown: list[str]


class Outcomes:
    """Receives outcomes. Duplicates that reached different replicas are resolved by the same rules when the log is read."""

    def __init__(self, watcher: Watcher, log: PredictionLog, metrics: Metrics):
        self._watcher, self._log, self._metrics = watcher, log, metrics
        self._recent: OrderedDict[str, float] = OrderedDict()

    def receive(self, outcomes: list[OutcomeIn]) -> OutcomesOut:
        """Raises HttpError 422 if the model that serves cannot have the value of one."""
        live = self._watcher.live
        binary = live is not None and live.model.contract.task == "binary"
        for position, outcome in enumerate(outcomes):
            if binary and outcome.value not in (0, 1):
                raise invalid(f"Expected 0 or 1, got {outcome.value:g} - at `$.outcomes[{position}].value`")
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
                self._log.add(OutcomeRecord(outcome.id, outcome.value, now))
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
