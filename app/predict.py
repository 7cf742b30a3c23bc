import asyncio
import json
import math
import re
import time
from typing import Any

import msgspec

from app.assignment import gets_challenger
from app.auth import Auth
from app.batch import Batch
from app.challenger import Challenger
from app.errors import HttpError, retry_after
from app.metrics import Metrics
from app.prediction_log import PredictionLog
from app.settings import Settings
from app.shadow import Shadow
from app.watcher import Watcher
from mlops.log_schema import new_id
from mlops.rows import RowSchema

_INLINE_ROWS = 64  # more would hold up the other requests: they go to a thread


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
_STEP = re.compile(r"\[(\d+)\]|\.([^.\[\]`]+)")


class Predict:
    """`POST /predict` as a bare ASGI application: validation compiled from the contract, then the graph."""

    def __init__(
        self, settings: Settings, watcher: Watcher, auth: Auth, log: PredictionLog, shadow: Shadow, metrics: Metrics
    ):
        self._settings, self._watcher, self._auth, self._metrics = settings, watcher, auth, metrics
        self._log, self._shadow = log, shadow
        self._in_flight = 0
        metrics.in_flight.set_function(lambda: self._in_flight)
        self._threads = asyncio.Semaphore(2)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._in_flight >= self._settings.max_in_flight:
            raise retry_after(503, "too many requests in flight", 1)
        self._in_flight += 1
        try:
            body = await self._answer(scope, receive)
        finally:
            self._in_flight -= 1
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Any, receive: Any) -> bytes:
        if scope["method"] != "POST":
            raise HttpError(405, "POST a JSON body", {"allow": "POST"})
        caller = self._auth.check(header(scope, b"authorization"), "predict")
        body = await read_body(receive, self._settings.max_body_bytes)
        live = self._watcher.live
        if live is None:
            raise retry_after(503, self._watcher.reason or "no model released", 5)
        model = live.model
        request = _decode(body, model.schema)
        rows: list[Any] = request.rows
        if len(rows) <= _INLINE_ROWS:
            scores = model.score(rows)
        else:
            async with self._threads:
                scores = await asyncio.to_thread(model.score, rows)
        if not all(map(math.isfinite, scores)):
            raise HttpError(500, "the model returned a non-finite score")
        batch = Batch(live, time.time(), [new_id() for _ in rows], rows, scores, request.key, caller)
        self._metrics.predictions.inc(len(rows))
        if live.challenger is None:
            self._log.add(batch)
        else:
            await self._ask_challenger(batch, live.challenger)
        return _encode(_response(batch))

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


def _response(batch: Batch) -> Answer:
    """The answer's model version is that of the first row."""
    versions, scores, predictions = batch.answered()
    answer = Answer(versions[0], batch.live.release.revision, list(map(Prediction, batch.ids, predictions, scores)))
    if batch.answers:
        for prediction, version in zip(answer.predictions, versions, strict=True):
            prediction.model_version = None if version == versions[0] else version
    return answer


def header(scope: Any, wanted: bytes) -> str:
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == wanted), "")


async def read_body(receive: Any, limit: int) -> bytearray:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HttpError(400, "client disconnected")
        body += message.get("body", b"")
        if len(body) > limit:
            detail = f"the body is larger than {limit} bytes; send fewer rows at a time"
            raise HttpError(413, detail, {"connection": "close"})
        if not message.get("more_body"):
            return body


def _decode(body: bytearray, schema: RowSchema) -> Any:
    try:
        return schema.decode(body)
    except msgspec.ValidationError as error:
        outside = "" if " - at `$" in str(error) else '; send {"rows": [{…}]}'
        raise invalid(f"{error}{outside}") from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise invalid(_not_a_number(body, schema) or f"not valid JSON: {error}") from None


def invalid(message: str) -> HttpError:
    """422 in FastAPI's form; msgspec ends its messages with the path: … - at `$.rows[0].temp`."""
    text, at, path = message.rpartition(" - at `$")
    text = text if at else message
    loc = ["body", *(int(index) if index else name for index, name in _STEP.findall(path if at else ""))]
    if "`" in text and ("unknown field" in text or "required field" in text):
        loc.append(text[text.index("`") + 1 : text.rindex("`")][:100])
    return HttpError(422, [{"loc": loc, "msg": text[:300], "type": "value_error"}])


def _not_a_number(body: bytearray, schema: RowSchema) -> str:
    """JSON has no NaN and no Infinity, but many clients send them: the message names the field; '' if it has neither."""
    if b"NaN" in body or b"Infinity" in body:
        try:
            schema.convert(json.loads(body, parse_constant=lambda name: type(name, (), {})()), schema.Request)
        except msgspec.ValidationError as error:
            return str(error)
        except (ValueError, RecursionError):
            pass
    return ""
