import asyncio
import json
import math
import re
import time
from collections.abc import Callable
from typing import Any

import msgspec

from app.assignment import gets_challenger
from app.batch import Batch
from app.challenger import Challenger
from app.errors import HttpError, retry_after
from app.metrics import Metrics
from app.prediction_log import PredictionLog
from app.settings import Settings
from app.shadow import Shadow
from app.watcher import Watcher
from mlops.log_key import LogKey
from mlops.model import Model
from mlops.rows import RowSchema

_INLINE_ROWS, _INLINE_BYTES = 64, 64 * 1024  # larger requests would hold up the others: they go to a thread
_LONGEST_PATH = 300  # characters of a path of ours; a longer one is a caller's text that looks like one


class Prediction(msgspec.Struct, omit_defaults=True):
    id: str
    prediction: float
    score: float
    model_version: str | None = None  # if it is not the answer's


class Answer(msgspec.Struct):
    model_version: str
    revision: int
    predictions: list[Prediction]


_encode = msgspec.json.Encoder().encode
_CONSTANTS = {name: type(name, (), {})() for name in ("NaN", "Infinity", "-Infinity")}
_STEP = re.compile(r"\[(\d+)\]|\.([^.\[\]`]+)")


class Predict:
    """`POST /predict` past FastAPI: validation compiled from the contract, then the graph."""

    def __init__(
        self, settings: Settings, watcher: Watcher, log: PredictionLog, shadow: Shadow, metrics: Metrics, key: LogKey
    ):
        self._settings, self._watcher, self._metrics = settings, watcher, metrics
        self._log, self._shadow, self._new_id = log, shadow, key.new_id
        self._in_flight = 0
        metrics.in_flight.set_function(lambda: self._in_flight)
        self._threads = asyncio.Semaphore(2)

    async def answer(self, body: bytearray, caller: str) -> bytes:
        """Raises HttpError."""
        if self._in_flight >= self._settings.max_in_flight:
            raise retry_after(503, "too many requests in flight", 1)
        self._in_flight += 1
        try:
            return await self._answer(body, caller)
        finally:
            self._in_flight -= 1

    async def _answer(self, body: bytearray, caller: str) -> bytes:
        live = self._watcher.live
        if live is None:
            raise retry_after(503, self._watcher.reason or "no model released", 5)
        small = len(body) <= _INLINE_BYTES
        request = _decode(body, live.model.schema) if small else await self._aside(_decode, body, live.model.schema)
        rows: list[Any] = request.rows
        small = len(rows) <= _INLINE_ROWS
        scores, ids = self._score(live.model, rows) if small else await self._aside(self._score, live.model, rows)
        batch = Batch(live, time.time(), ids, rows, scores, request.key, caller)
        self._metrics.predictions.inc(len(rows))
        if live.challenger is None:
            self._log.add(batch)
        else:
            await self._ask_challenger(batch, live.challenger)
        return _encoded(batch) if small else await self._aside(_encoded, batch)

    async def _aside(self, work: Callable[..., Any], *told: Any) -> Any:
        """In a thread: what takes long would hold up the other requests."""
        async with self._threads:
            return await asyncio.to_thread(work, *told)

    def _score(self, model: Model, rows: list[Any]) -> tuple[list[float], list[str]]:
        try:
            scores = model.score(rows)
        except Exception as error:  # whatever these rows do to the graph is their caller's alone
            self._metrics.score_failed.labels("error").inc()
            raise HttpError(500, f"the model failed on these rows: {type(error).__name__}") from None
        if not all(map(math.isfinite, scores)):
            self._metrics.score_failed.labels("nan").inc()
            raise HttpError(500, "the model returned a non-finite score")
        return scores, [self._new_id() for _ in rows]

    async def _ask_challenger(self, batch: Batch, challenger: Challenger) -> None:
        """The rows assigned to the challenger wait for it, as long as the budget allows; it scores the others later."""
        contract, release = batch.live.model.contract, batch.live.release
        batch.results = [None] * len(batch.rows)
        batch.arms = []
        for row_id, row in zip(batch.ids, batch.rows, strict=True):
            key = contract.entity_of(row) if contract.entity else batch.key or row_id
            batch.arms.append(int(gets_challenger(release, row, key)))
        assigned = [position for position, arm in enumerate(batch.arms) if arm]
        if assigned and not challenger.breaker.open:
            rows = [batch.rows[position] for position in assigned]
            [scored] = await challenger.score([rows], challenger.budget(len(rows)))
            batch.answers = dict(zip(assigned, scored.scores or (), strict=False))
            self._shadow.record(batch, assigned, scored)
        if batch.pending():
            self._shadow.add(batch)


def _encoded(batch: Batch) -> bytes:
    return _encode(_response(batch))


def _response(batch: Batch) -> Answer:
    """The answer's model version is that of the first row."""
    versions, scores, predictions = batch.answered()
    answer = Answer(versions[0], batch.live.release.revision, list(map(Prediction, batch.ids, predictions, scores)))
    if batch.answers:
        for prediction, version in zip(answer.predictions, versions, strict=True):
            prediction.model_version = None if version == versions[0] else version
    return answer


def _decode(body: bytearray, schema: RowSchema) -> Any:
    try:
        return schema.decode(body)
    except msgspec.ValidationError as error:
        raise invalid(str(error), '{"rows": [{…}]}') from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise invalid(_not_a_number(body, schema) or f"not valid JSON: {error}") from None


def invalid(message: str, example: str = "") -> HttpError:
    """422 in FastAPI's form; msgspec ends its messages with the path: … - at `$.rows[0].temp`. `example`: of a body, to send
    instead of what is not even an object."""
    text, at, path = message.rpartition(" - at `$")
    message += f"; send {example}" if example and not at else ""
    if not at or len(path) > _LONGEST_PATH:
        text, path = message, ""
    loc = ["body", *(int(index) if index else name for index, name in _STEP.findall(path))]
    if "`" in text and ("unknown field" in text or "required field" in text):
        loc.append(text[text.index("`") + 1 : text.rindex("`")][:100])
    return HttpError(422, [{"loc": loc, "msg": text[:300], "type": "value_error"}])


def _not_a_number(body: bytearray, schema: RowSchema) -> str:
    """JSON has no NaN and no Infinity, but many clients send them: the message names the field; '' if it has neither, or
    is so large that finding it out costs more than the answer is worth."""
    if len(body) <= _INLINE_BYTES and (b"NaN" in body or b"Infinity" in body):
        try:
            schema.convert(json.loads(body, parse_constant=lambda name: _CONSTANTS[name]), schema.Request)
        except msgspec.ValidationError as error:
            return str(error)
        except (ValueError, RecursionError):
            pass
    return ""
