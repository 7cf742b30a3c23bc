import asyncio
import time
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

from app.errors import retry_after
from app.metrics import Metrics
from app.predict import invalid
from app.prediction_log import PredictionLog
from app.watcher import Watcher
from mlops.log_key import LogKey
from mlops.log_schema import Number, OutcomeRecord

_LATE_SECONDS = 30 * 24 * 3600.0
_REMEMBERED = 100_000  # predictions
_CORRECTIONS = 10  # of the outcome of one: each is a row of the log


class OutcomeIn(msgspec.Struct, forbid_unknown_fields=True):
    id: Annotated[str, Meta(max_length=64, description="the id that /predict returned")]
    value: Annotated[Number, Meta(description="the true value: 0 or 1, or the number")]


class OutcomesIn(msgspec.Struct, forbid_unknown_fields=True):
    outcomes: Annotated[list[OutcomeIn], Meta(min_length=1, max_length=10_000)]


class OutcomesOut(msgspec.Struct):
    """How many were `accepted`, `late` (over 30 days; kept), `duplicate` (ignored), `contradictory` (kept: the last one
    counts), `foreign` (another API key's; ignored: only who reported an outcome corrects it), `excess` (an eleventh
    correction; ignored) and `unknown` (not the id of a prediction; ignored)."""

    results: dict[str, int]
    unknown: list[str]


@dataclass
class _Known:
    caller: str
    value: float
    corrections: int = 0


_decode = msgspec.json.Decoder(OutcomesIn).decode
_encode = msgspec.json.Encoder().encode


class Outcomes:
    """Receives outcomes. Those that reached different replicas are resolved by the same rules when the log is read."""

    def __init__(self, watcher: Watcher, log: PredictionLog, metrics: Metrics, key: LogKey):
        self._watcher, self._log, self._metrics, self._id_time = watcher, log, metrics, key.id_time
        self._recent: OrderedDict[str, _Known] = OrderedDict()
        self._one = asyncio.Lock()

    async def answer(self, body: bytes | bytearray, caller: str) -> bytes:
        """In a thread, one at a time: what takes long would hold up the predictions. Raises HttpError."""
        async with self._one:
            return await asyncio.to_thread(self.receive, body, caller)

    def receive(self, body: bytes | bytearray, caller: str) -> bytes:
        """Nothing is kept of a body with a fault. Raises HttpError 422, and 503 without a model: its contract says what
        a value can be."""
        live = self._watcher.live
        if live is None:
            raise retry_after(503, self._watcher.reason or "no model released", 5)
        outcomes = _read(body, binary=live.model.contract.task == "binary")
        now, unknown = time.time(), []
        results: Counter[str] = Counter()
        for outcome in outcomes:
            result = self._take(outcome, caller, now)
            results[result] += 1
            if result == "unknown":
                unknown.append(outcome.id)
        for result, count in results.items():
            self._metrics.outcomes.labels(result).inc(count)
        return _encode(OutcomesOut(dict(results), unknown))

    def _take(self, outcome: OutcomeIn, caller: str, now: float) -> str:
        made = self._id_time(outcome.id)
        if made is None or made > now + 60:
            return "unknown"
        known = self._recent.get(outcome.id)
        if known is None:
            result = "late" if now - made > _LATE_SECONDS else "accepted"
            self._recent[outcome.id] = _Known(caller, outcome.value)
            if len(self._recent) > _REMEMBERED:
                self._recent.popitem(last=False)
        elif known.caller != caller:
            return "foreign"
        elif known.value == outcome.value:
            return "duplicate"
        elif known.corrections >= _CORRECTIONS:
            return "excess"
        else:
            result = "contradictory"
            known.value, known.corrections = outcome.value, known.corrections + 1
        self._log.add(OutcomeRecord(outcome.id, outcome.value, now, caller))
        return result


def _read(body: bytes | bytearray, binary: bool) -> list[OutcomeIn]:
    """Raises HttpError 422, of the first fault."""
    try:
        outcomes = _decode(body).outcomes
    except msgspec.ValidationError as error:
        raise invalid(str(error), '{"outcomes": [{"id": …, "value": …}]}') from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        hint = "; JSON has no NaN and no Infinity" if b"NaN" in body or b"Infinity" in body else ""
        raise invalid(f"not valid JSON: {error}{hint}") from None
    for position, outcome in enumerate(outcomes):
        if binary and outcome.value not in (0, 1):
            raise invalid(f"Expected 0 or 1, got {outcome.value:g} - at `$.outcomes[{position}].value`")
    return outcomes
