import asyncio
import json
import logging
import os
import re
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import msgspec
from fastapi import FastAPI, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from app.auth import Auth
from app.bins import Bins
from app.errors import HttpError
from app.metrics import Metrics
from app.outcomes import Outcomes, OutcomesIn, OutcomesOut
from app.predict import Answer, Predict, header, read_body
from app.prediction_log import PredictionLog
from app.settings import Settings
from app.shadow import Shadow
from app.watcher import Watcher
from mlops.access import Scope
from mlops.keys import Keyring
from mlops.registered_model import RegisteredModel
from mlops.rows import moment_schema
from mlops.store import Store

log = logging.getLogger("app.access")
_REQUEST_ID = re.compile(rb"[\w.-]{1,64}")
_REFUSALS = {"401": "no valid API key", "403": "wrong scope", "429": "rate limit", "503": "overloaded, or no model"}
_INVALID = {"413": "too large", "422": "a field is invalid"}
_SCOPES: dict[str, Scope] = {"/outcomes": "outcomes"}  # of the others: predict
_OPEN = {"/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"}
_STATIC = "/static"  # of the page /docs


def create_app(settings: Settings) -> "Service":
    store, metrics = Store(settings.bucket), Metrics()
    auth, bins = Auth(metrics), Bins(metrics.registry)
    model = RegisteredModel(settings.model, settings.env, store, Keyring(settings.keyring))
    watcher = Watcher(settings, model, auth, metrics)
    prediction_log = PredictionLog(settings, store, metrics, bins)
    shadow = Shadow(prediction_log, metrics)
    outcomes = Outcomes(watcher, prediction_log, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        for part in (prediction_log, shadow, watcher):
            part.start()
        yield
        await shadow.stop()
        for part in (watcher, prediction_log):
            await asyncio.to_thread(part.stop)

    pages = FastAPIOffline(title=f"{settings.model} predictions", lifespan=lifespan, redoc_url=None, static_url=_STATIC)

    @pages.exception_handler(HttpError)
    async def refuse(_: Any, error: HttpError) -> JSONResponse:
        return JSONResponse({"detail": error.detail}, error.status, error.headers)

    @pages.exception_handler(RequestValidationError)
    async def name_the_field(_: Any, error: RequestValidationError) -> Response:
        faults = [{name: fault[name] for name in ("loc", "msg", "type")} for fault in error.errors()]
        # Plain ASCII without the input, which may hold what JSON cannot: NaN, half a character.
        return Response(json.dumps({"detail": faults}), 422, media_type="application/json")

    @pages.post("/outcomes", tags=["outcomes"])
    def receive(body: OutcomesIn) -> OutcomesOut:
        """Report the true values of earlier predictions."""
        return outcomes.receive(body.outcomes)

    @pages.get("/model", tags=["model"])
    def served_model() -> dict[str, Any]:
        """The release that is served, and its contract."""
        live = watcher.live
        if live is None:
            raise HttpError(503, watcher.reason or "no model released", {"retry-after": "5"})
        release, contract = live.release, live.model.contract
        return {"release": release.model_dump(mode="json"), "contract": contract.model_dump(mode="json")}

    @pages.get("/healthz", tags=["probes"])
    def healthz() -> dict[str, bool]:
        return {"alive": True}

    @pages.get("/readyz", tags=["probes"])
    def readyz(response: Response) -> dict[str, Any]:
        response.status_code = 503 if watcher.reason else 200
        return {"ready": not watcher.reason, "reason": watcher.reason or ("" if watcher.live else "no model released")}

    @pages.get("/metrics", include_in_schema=False)
    def scrape() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    pages.openapi = partial(_openapi, pages, pages.openapi, watcher)
    predict = Predict(settings, watcher, auth, prediction_log, shadow, metrics)
    return Service(pages, predict, auth, metrics, settings.max_body_bytes)


def _openapi(pages: FastAPI, generate: Callable[[], dict[str, Any]], watcher: Watcher) -> dict[str, Any]:
    """FastAPI's schema, and `/predict` as the served contract defines it."""
    pages.openapi_schema = None  # that contract may have changed
    schema: Any = generate()
    types: list[Any] = [Answer, *([watcher.live.model.schema.Request] if watcher.live else [])]
    shapes, components = msgspec.json.schema_components(
        types, schema_hook=moment_schema, ref_template="#/components/schemas/{name}"
    )
    content = [{"application/json": {"schema": shape}} for shape in (*shapes, {})]
    schema.setdefault("components", {}).setdefault("schemas", {}).update(components)
    schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    schema["security"] = [{"key": []}]
    responses: dict[str, Any] = {status: {"description": text} for status, text in (_REFUSALS | _INVALID).items()}
    responses["200"] = {"description": "A prediction a row", "content": content[0]}
    operation: dict[str, Any] = {"tags": ["predictions"], "summary": "Predict one row or many", "responses": responses}
    operation["requestBody"] = {"required": True, "content": content[1]}
    schema["paths"] = {"/predict": {"post": operation}, **schema["paths"]}
    for operations in schema["paths"].values():
        for each in operations.values():
            for status, text in _REFUSALS.items():
                each["responses"].setdefault(status, {"description": text})
    return schema


class Service:
    """The outermost ASGI application: routes /predict past FastAPI, measures and logs every response."""

    def __init__(self, pages: FastAPI, predict: Predict, auth: Auth, metrics: Metrics, max_body_bytes: int):
        self._pages, self._predict, self._auth, self._metrics = pages, predict, auth, metrics
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._pages(scope, receive, send)
            return
        started, status = time.perf_counter(), 500
        request_id = header(scope, b"x-request-id").encode("latin-1")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = os.urandom(16).hex().encode()

        async def send_with_id(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
            await send(message)

        try:
            if encoding := header(scope, b"content-encoding"):
                raise HttpError(415, f"content-encoding {encoding[:40]!r} is not supported: send the body as it is")
            if scope["path"] == "/predict":
                await self._predict(scope, receive, send_with_id)
            else:
                await self._page(scope, receive, send_with_id)
        except HttpError as error:
            await JSONResponse({"detail": error.detail}, error.status, error.headers)(scope, receive, send_with_id)
        finally:
            seconds = time.perf_counter() - started
            self._metrics.answered(scope["path"], scope["method"], status, seconds)
            # Successful predictions are in the prediction log; a line for each would hide the others.
            if status >= 400:
                extra = {"id": request_id.decode(), "path": scope["path"][:100], "status": status}
                log.warning("request failed", extra=extra | {"ms": round(seconds * 1000, 2)})

    async def _page(self, scope: Any, receive: Any, send: Any) -> None:
        """FastAPI would read a body of any size, and before authentication. What is not named open is closed."""
        if scope["path"] not in _OPEN and not scope["path"].startswith(f"{_STATIC}/"):
            self._auth.check(header(scope, b"authorization"), _SCOPES.get(scope["path"], "predict"))
        parts = [{"type": "http.request", "body": bytes(await read_body(receive, self._max_body_bytes))}]

        async def receive_again() -> Any:
            return parts.pop() if parts else await receive()

        # A body is JSON whatever curl calls it; uvicorn leaves out that of an answer to HEAD.
        headers = [header for header in scope["headers"] if header[0] != b"content-type"]
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        more = {"method": method, "headers": [*headers, (b"content-type", b"application/json")]}
        await self._pages({**scope, **more}, receive_again, send)
