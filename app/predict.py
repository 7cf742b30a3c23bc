import asyncio
import json
import math
import re
import time
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
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

_SLICE_ROWS, _SMALL_BYTES = 64, 64 * 1024  # larger requests would hold up the others: they are answered in slices
# While small requests came in lately, a large one rests after each slice, and 50 times as long as it took to read it.
_SLICE_SECONDS, _REST_SECONDS, _RESTS, _LATELY_SECONDS = 0.0005, 0.002, 50, 0.1
_LONGEST_PATH = 300  # characters of a path of ours; a longer one is a caller's text that looks like one


class Prediction(msgspec.Struct, omit_defaults=True):
    id: str
    prediction: float
    score: float
    model_version: str | None = None  # if it is not the answer's


class Answer(msgspec.Struct):
    """The model version is that of the first row."""

    model_version: str
    revision: int
    predictions: list[Prediction]


class _Encoded(msgspec.Struct):
    model_version: str
    revision: int
    predictions: msgspec.Raw


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
        self._small_at, self._large = 0.0, asyncio.Lock()
        self._large_of_key: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

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
        # Each row has a brace.
        if len(body) <= _SMALL_BYTES and body.count(b"{") <= _SLICE_ROWS + 1:
            self._small_at = time.monotonic()
            return await self._predict(body, caller, large=False)
        async with self._large_of_key[caller], self._large:  # one in all, and the keys in turn
            await self._log.room()
            return await self._predict(body, caller, large=True)

    async def _done(self, work: Iterable[Any], large: bool) -> list[Any]:
        """Of work that is done as it is iterated. Between the slices of a large one other requests are heard: a thread would
        have them wait for the interpreter, and longer."""
        if not large:
            return list(work)
        done, since = [], time.monotonic()
        for each in work:
            done.append(each)
            if time.monotonic() - since > _SLICE_SECONDS:
                await self._rest(_REST_SECONDS)
                since = time.monotonic()
        return done

    async def _rest(self, seconds: float) -> None:
        lately = time.monotonic() - self._small_at < _LATELY_SECONDS
        await asyncio.sleep(seconds if lately else 0)

    async def _predict(self, body: bytearray, caller: str, large: bool) -> bytes:
        live, since = self._watcher.live, time.monotonic()
        if live is None:
            raise retry_after(503, self._watcher.reason or "no model released", 5)
        with _named(body, live.model.schema):
            try:
                decoded, key = live.model.schema.decode(body)
            finally:
                if large:  # this call has no slices
                    await self._rest(_RESTS * (time.monotonic() - since))
            rows = await self._done(decoded, large)
        scores = await self._done(self._scores(live.model, rows), large)
        ids = await self._done((self._new_id() for _ in rows), large)
        batch = Batch(live, time.time(), ids, rows, scores, key, caller)
        self._metrics.predictions.inc(len(rows))
        if live.challenger:
            await self._ask_challenger(batch, live.challenger, large)
        else:
            batch.lines = await self._done(self._log.lines(batch), large) if large else None
            self._log.add(batch)
        versions, scores, predictions = batch.answered()
        others = (None if version == versions[0] else version for version in versions)
        encoded = await self._done(map(_encode, map(Prediction, ids, predictions, scores, others)), large)
        return _encode(_Encoded(versions[0], live.release.revision, msgspec.Raw(b"[" + b",".join(encoded) + b"]")))

    def _scores(self, model: Model, rows: list[Any]) -> Iterator[float]:
        for start in range(0, len(rows), _SLICE_ROWS):
            try:
                scores = model.score(rows[start : start + _SLICE_ROWS])
            except Exception as error:  # whatever these rows do to the graph is their caller's alone
                self._metrics.score_failed.labels("error").inc()
                raise HttpError(500, f"the model failed on these rows: {type(error).__name__}") from None
            if not all(map(math.isfinite, scores)):
                self._metrics.score_failed.labels("nan").inc()
                raise HttpError(500, "the model returned a non-finite score")
            yield from scores

    async def _ask_challenger(self, batch: Batch, challenger: Challenger, large: bool) -> None:
        """The rows assigned to the challenger wait for it, as long as the budget allows; it scores the others later."""
        batch.results = [None] * len(batch.rows)
        batch.arms = await self._done(_arms(batch), large)
        assigned = [position for position, arm in enumerate(batch.arms) if arm]
        if assigned and not challenger.breaker.open:
            rows = [batch.rows[position] for position in assigned]
            [scored] = await challenger.score([rows], challenger.budget(len(rows)))
            batch.answers = dict(zip(assigned, scored.scores or (), strict=False))
            self._shadow.record(batch, assigned, scored)
        if batch.pending():
            self._shadow.add(batch)


def _arms(batch: Batch) -> Iterator[int]:
    contract, release = batch.live.model.contract, batch.live.release
    for row_id, row in zip(batch.ids, batch.rows, strict=True):
        key = contract.entity_of(row) if contract.entity else batch.key or row_id
        yield int(gets_challenger(release, row, key))


@contextmanager
def _named(body: bytearray, schema: RowSchema) -> Generator[None]:
    """Raises HttpError 422 for msgspec's errors."""
    try:
        yield
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
    if len(body) <= _SMALL_BYTES and (b"NaN" in body or b"Infinity" in body):
        try:
            schema.convert(json.loads(body, parse_constant=lambda name: _CONSTANTS[name]), schema.Request)
        except msgspec.ValidationError as error:
            return str(error)
        except (ValueError, RecursionError):
            pass
    return ""
