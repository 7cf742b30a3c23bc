from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from app.auth import Auth
from app.challenger import Challenger
from app.errors import HttpError, retry_after
from app.metrics import Metrics
from app.recorder import Batch, Recorder
from app.settings import Settings
from app.shadow import Shadow
from app.watcher import Live, Watcher
from mlops.assignment import gets_challenger
from mlops.records import new_id

_INLINE_ROWS = 64  # more would hold up the other requests: they go to a thread


class Prediction(msgspec.Struct, omit_defaults=True):
    id: str
    prediction: float
    score: float
    model: str | None = None  # where it is another than the answer's


class Answer(msgspec.Struct):
    model: str
    epoch: int
    predictions: list[Prediction]


_encode = msgspec.json.Encoder().encode
_STEP = re.compile(r"\[(\d+)\]|\.([^.\[\]`]+)")


class Predict:
    """`POST /predict`, as a bare ASGI application: validation compiled from the contract, then the graph."""

    def __init__(self, settings: Settings, watcher: Watcher, auth: Auth, recorder: Recorder, shadow: Shadow, metrics: Metrics):
        self._settings, self._watcher, self._auth, self._metrics = settings, watcher, auth, metrics
        self._recorder, self._shadow = recorder, shadow
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
        arm = None if live.challenger is None else 0
        batch = Batch(live, time.time(), [new_id() for _ in rows], rows, scores, request.key, arm)
        self._metrics.predictions.inc(len(rows))
        if live.challenger is not None and live.release.weight is not None:  # some rows may be the challenger's to answer
            return _encode(_merged(live, batch.ids, await self._tried(batch, live.challenger)))
        (self._recorder if live.challenger is None else self._shadow).add(batch)
        digest, scores, predictions = batch.answered
        return _encode(Answer(digest, live.release.epoch, list(map(Prediction, batch.ids, predictions, scores))))

    async def _tried(self, batch: Batch, challenger: Challenger) -> list[Batch]:
        """The rows that the challenger is to answer wait for it, as long as the budget allows; the others it scores later."""
        contract, release = batch.live.model.contract, batch.live.release
        keys = [contract.entity_of(row) if contract.entity else batch.key or id_ for id_, row in zip(batch.ids, batch.rows, strict=True)]
        arms = [int(gets_challenger(release, row, key)) for row, key in zip(batch.rows, keys, strict=True)]
        parts = {arm: _part(batch, arms, arm) for arm in set(arms)}
        if 1 in parts and not challenger.breaker.open:
            [trial] = await challenger.score([parts[1].rows], challenger.budget(len(parts[1].rows)))
            parts[1] = replace(parts[1], waited=True, trial=trial)
            self._shadow.log([parts[1]])
        for part in parts.values():
            if not part.waited:
                self._shadow.add(part)
        return list(parts.values())


def _part(batch: Batch, arms: list[int], arm: int) -> Batch:
    chosen = [position for position, each in enumerate(arms) if each == arm]
    ids, rows, scores = ([values[position] for position in chosen] for values in (batch.ids, batch.rows, batch.scores))
    return replace(batch, ids=ids, rows=rows, scores=scores, arm=arm)


def _merged(live: Live, ids: Sequence[str], parts: list[Batch]) -> Answer:
    """One answer in the request's order. Its model is the first row's."""
    found: dict[str, tuple[str, float, float]] = {}
    for part in parts:
        digest, scores, predictions = part.answered
        found |= {id_: (digest, p, s) for id_, p, s in zip(part.ids, predictions, scores, strict=True)}
    model = found[ids[0]][0]
    each = [Prediction(id_, p, s, None if digest == model else digest) for id_, (digest, p, s) in ((i, found[i]) for i in ids)]
    return Answer(model, live.release.epoch, each)


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
