import asyncio
import logging
import os
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.routing import Match

from app.auth import Auth
from app.bins import Bins
from app.budget import Budget, Held, header
from app.errors import HttpError
from app.metrics import Metrics
from app.openapi import openapi
from app.outcomes import Outcomes
from app.pages import OpenPages
from app.predict import Predict
from app.prediction_log import PredictionLog
from app.settings import Settings
from app.shadow import Shadow
from app.watcher import Watcher
from mlops.access import Scope
from mlops.keys import Keyring
from mlops.protocol import KEY
from mlops.registered_model import RegisteredModel
from mlops.store import Store

log = logging.getLogger("app.access")
_REQUEST_ID = re.compile(rb"[\w.-]{1,64}")
_SCOPES: dict[str, Scope] = {"/outcomes": "outcomes"}  # of the others: predict
_OPEN = {"/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"}
_STATIC = "/static"  # of the page /docs
_STRANGERS, _WAIT_SECONDS = 300, 0.25  # requests without a key in a second, one by one, and how long one waits at most
Answers = Callable[[bytearray, str], Awaitable[bytes]]  # a body, and the id of its API key


def create_app(settings: Settings) -> "Service":
    store, metrics = Store(settings.bucket), Metrics()
    auth, bins = Auth(metrics), Bins(metrics.registry)
    model = RegisteredModel(
        settings.model, settings.env, store, Keyring(settings.keyring), settings.log_key.get_secret_value()
    )
    watcher = Watcher(settings, model, auth, metrics)
    prediction_log = PredictionLog(settings, model, metrics, bins)
    shadow = Shadow(prediction_log, metrics)
    outcomes = Outcomes(watcher, prediction_log, metrics, model.log_key)

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

    @pages.get("/model", tags=["model"])
    def served_model() -> dict[str, Any]:
        """The release that is served, and its contract."""
        live = watcher.live
        if live is None:
            raise HttpError(503, watcher.reason or "no model released", {"retry-after": "5"})
        release, contract = live.release, live.model.contract
        return {"release": release.model_dump(mode="json"), "contract": contract.model_dump(mode="json")}

    @pages.get("/healthz", tags=["probes"])
    async def healthz() -> dict[str, bool]:
        return {"alive": True}

    @pages.get("/readyz", tags=["probes"])
    async def readyz(response: Response) -> dict[str, Any]:
        response.status_code = 503 if watcher.reason else 200
        return {"ready": not watcher.reason, "reason": watcher.reason or ("" if watcher.live else "no model released")}

    @pages.get("/metrics", include_in_schema=False)
    def scrape() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    pages.openapi = partial(openapi, pages, pages.openapi, watcher)
    predict = Predict(settings, watcher, prediction_log, shadow, metrics, model.log_key)
    bare: dict[str, Answers] = {"/predict": predict.answer, "/outcomes": outcomes.answer}
    return Service(pages, OpenPages(pages, watcher), bare, auth, Budget(settings), metrics)


class Service:
    """The outermost ASGI application: decides who is heard and how much of it, measures and logs every response."""

    def __init__(
        self,
        pages: FastAPI,
        open_pages: OpenPages,
        bare: dict[str, Answers],
        auth: Auth,
        budget: Budget,
        metrics: Metrics,
    ):
        self._pages, self._open, self._bare = pages, open_pages, bare
        self._auth, self._budget, self._metrics = auth, budget, metrics
        self._next_stranger = 0.0
        metrics.bytes_held.set_function(lambda: budget.held)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
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
            try:
                await self._answer(scope, receive, send_with_id)
            except HttpError as error:
                if KEY not in scope["state"]:
                    started += await self._pace()
                await JSONResponse({"detail": error.detail}, error.status, error.headers)(scope, receive, send_with_id)
        finally:
            seconds = time.perf_counter() - started
            self._metrics.answered(scope["path"], scope["method"], status, seconds)
            # Successful predictions are in the prediction log; a line for each would hide the others.
            if status >= 400:
                extra = {"id": request_id.decode(), "path": scope["path"][:100], "status": status}
                log.warning("request failed", extra=extra | {"ms": round(seconds * 1000, 2)})

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        """What is not named open is closed, and no body is read without a key."""
        path, answers = scope["path"], self._bare.get(scope["path"])
        if answers is None:
            self._find(scope)
        elif scope["method"] != "POST":
            raise HttpError(405, "POST a JSON body", {"allow": "POST"})
        if encoding := header(scope, b"content-encoding"):
            raise HttpError(415, f"content-encoding {encoding[:40]!r} is not supported: send the body as it is")
        authorization = header(scope, b"authorization")
        if answers is None and (path in _OPEN or path.startswith(f"{_STATIC}/")):
            await self._open.answer(scope, send, fresh=await self._known(authorization))
            return
        caller = self._auth.check(authorization, _SCOPES.get(path, "predict"))
        scope["state"][KEY] = caller
        with Held(self._budget, caller) as held:
            body = await held.read(scope, receive)
            if answers is None:
                await self._page(scope, body, receive, send)
                return
            answer = await answers(body, caller)
            held.add(len(answer))
            headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": answer, "more_body": True})  # until the peer has taken it
            await send({"type": "http.response.body"})

    def _find(self, scope: Any) -> None:
        """Raises HttpError 404 or 405 at a fraction of what FastAPI takes for it."""
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        fits = {route.matches({**scope, "method": method})[0]: route for route in self._pages.routes}
        if Match.FULL in fits:
            return
        if Match.PARTIAL in fits:
            raise HttpError(
                405, "Method Not Allowed", {"allow": ", ".join(getattr(fits[Match.PARTIAL], "methods", "GET"))}
            )
        raise HttpError(404, "Not Found")

    async def _known(self, authorization: str) -> bool:
        """Whether somebody with a key asks; a stranger waits if there are many."""
        with suppress(HttpError):
            if authorization:
                self._auth.check(authorization, "predict")
                return True
        await self._pace()
        return False

    async def _pace(self) -> float:
        """Seconds that a stranger had to wait: a crowd is not answered at once, or callers with a key would wait for it."""
        now = time.monotonic()
        wait = min(max(0.0, self._next_stranger - now), _WAIT_SECONDS)
        self._next_stranger = now + wait + 1 / _STRANGERS
        if wait:
            await asyncio.sleep(wait)
        return wait

    async def _page(self, scope: Any, body: bytearray, receive: Any, send: Any) -> None:
        parts = [{"type": "http.request", "body": bytes(body)}]

        async def receive_again() -> Any:
            return parts.pop() if parts else await receive()

        # A body is JSON whatever curl calls it; uvicorn leaves out that of an answer to HEAD.
        headers = [header for header in scope["headers"] if header[0] != b"content-type"]
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        more = {"method": method, "headers": [*headers, (b"content-type", b"application/json")]}
        await self._pages({**scope, **more}, receive_again, send)
