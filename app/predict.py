from __future__ import annotations

import asyncio
import json
import math
import re
import time
from typing import Any

import msgspec

from app.auth import Auth
from app.errors import HttpError, retry_after
from app.metrics import Metrics
from app.recorder import Batch, Recorder
from app.settings import Settings
from app.watcher import Watcher
from mlops.records import new_id

_INLINE_ROWS = 64  # more would hold up the other requests: they go to a thread


class Prediction(msgspec.Struct):
    id: str
    prediction: float
    score: float


class Answer(msgspec.Struct):
    model: str
    epoch: int
    predictions: list[Prediction]


_encode = msgspec.json.Encoder().encode
_STEP = re.compile(r"\[(\d+)\]|\.([^.\[\]`]+)")


class Predict:
    """`POST /predict`, as a bare ASGI application: validation compiled from the contract, then the graph."""

    def __init__(self, settings: Settings, watcher: Watcher, auth: Auth, recorder: Recorder, metrics: Metrics):
        self._settings, self._watcher, self._auth, self._recorder, self._metrics = settings, watcher, auth, recorder, metrics
        self._in_flight = 0
        metrics.in_flight.set_function(lambda: self._in_flight)
        self._threads = asyncio.Semaphore(2)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> int:
        """Answer and return the status."""
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
        return 200

    async def _answer(self, scope: Any, receive: Any) -> bytes:
        if scope["method"] != "POST":
            raise HttpError(405, "POST a JSON body", {"allow": "POST"})
        self._auth.check(authorization(scope), "predict")
        body = await read_body(receive, self._settings.max_body_bytes)
        live = self._watcher.live
        if live is None:
            raise retry_after(503, self._watcher.reason or "no model released", 5)
        model = live.model
        try:
            request = model.schema.decoder.decode(body)
        except msgspec.ValidationError as error:
            raise invalid(str(error)) from None
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise invalid(_not_a_number(body, model.schema.Request) or f"not valid JSON: {error}") from None
        rows: list[Any] = request.rows
        if len(rows) <= _INLINE_ROWS:
            scores = model.score(rows)
        else:
            async with self._threads:
                scores = await asyncio.to_thread(model.score, rows)
        if not all(map(math.isfinite, scores)):
            raise HttpError(500, "the model returned no number for a row")
        predictions = model.predictions(scores)
        ids = [new_id() for _ in rows]
        self._recorder.add(Batch(live, time.time(), ids, rows, scores, predictions))
        self._metrics.predictions.inc(len(rows))
        return _encode(Answer(model.digest, live.release.epoch, list(map(Prediction, ids, predictions, scores))))


def authorization(scope: Any) -> str | None:
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == b"authorization"), None)


async def read_body(receive: Any, limit: int) -> bytearray:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HttpError(400, "the caller went away")
        body += message.get("body", b"")
        if len(body) > limit:
            raise HttpError(413, f"the body is larger than {limit} bytes; send fewer rows at a time", {"connection": "close"})
        if not message.get("more_body"):
            return body


def invalid(message: str) -> HttpError:
    """422 in FastAPI's form; msgspec ends its messages with the path: … - at `$.rows[0].temp`."""
    text, at, path = message.rpartition(" - at `$")
    text = text if at else message
    loc = ["body", *(int(index) if index else name for index, name in _STEP.findall(path if at else ""))]
    if "`" in text and ("unknown field" in text or "required field" in text):
        loc.append(text[text.index("`") + 1 : text.rindex("`")][:100])
    return HttpError(422, [{"loc": loc, "msg": text[:300], "type": "value_error"}])


def _not_a_number(body: bytearray, request: Any) -> str:
    """JSON has no NaN and no Infinity, but many clients send them: say in which field, '' if that is not the fault."""
    if b"NaN" in body or b"Infinity" in body:
        try:
            msgspec.convert(json.loads(body, parse_constant=lambda name: type(name, (), {})()), request)
        except msgspec.ValidationError as error:
            return str(error)
        except (ValueError, RecursionError):
            pass
    return ""
