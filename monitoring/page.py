"""The controller's HTTP server: metrics for Prometheus, and the status page for people with a key."""

import base64
import binascii
import math
import re
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import uvicorn
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from mlops.access import Keys, Refused, Scope
from mlops.registered_model import RegisteredModel
from mlops.releases import describe, now
from mlops.report import render
from monitoring import server
from monitoring.analysis import page_of
from monitoring.status import Snapshot, age

_TEMPLATE = Path(__file__).parent / "templates" / "status.html"
_OWN = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_FOREIGN = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; sandbox"  # written by trainings
_HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}
_STALE = timedelta(seconds=30)
_LARGEST = 20 * 1024 * 1024  # bytes of a report
Page = Callable[[Request], Awaitable[Response]]


class Site:
    """Its requests read what is in memory, reports excepted. `ask`: for an analysis now."""

    def __init__(self, model: RegisteredModel, registry: CollectorRegistry, ask: Callable[[], None]):
        self.keys = Keys()
        self.snapshot: Snapshot | None = None
        self._model, self._ask = model, ask
        self._shown: tuple[Snapshot | None, bool, str] = None, False, ""
        self.app = Starlette(routes=[
            server.metrics(registry),
            Route("/", self._for("status", self._index)),
            Route("/reports/{digest}/{name}", self._for("status", _in_a_thread(self._report))),
            Route("/rollouts/{rollout}", self._for("status", _in_a_thread(self._rollout))),
            Route("/analysis", self._for("analysis", self._analysis), methods=["POST"]),
        ])  # fmt: skip
        self.app.router.redirect_slashes = False

    def serve(self, host: str, port: int) -> uvicorn.Server:
        return server.serve(self.app, host, port)

    def show(self, snapshot: Snapshot) -> None:
        if self.snapshot is None:  # no reader must wait until the templates are compiled
            self._page(snapshot)
        self.snapshot = snapshot

    def _page(self, snapshot: Snapshot) -> str:
        """Rendered once for each snapshot that somebody reads."""
        stale = now() - snapshot.at > _STALE
        if self._shown[:2] != (snapshot, stale):
            self._shown = snapshot, stale, render(_TEMPLATE, s=snapshot, stale=stale, age=age, describe=describe)
        return self._shown[2]

    def _for(self, scope: Scope, page: Page) -> Page:
        async def checked(request: Request) -> Response:
            try:
                self.keys.find(_secret(request.headers.get("authorization", "")), scope)
            except Refused as refused:
                headers = {"www-authenticate": 'Basic realm="any name, an API key"'} if refused.status == 401 else {}
                headers |= {"retry-after": str(math.ceil(refused.wait))} if refused.wait else {}
                raise HTTPException(refused.status, refused.detail, headers) from None
            return await page(request)

        return checked

    async def _index(self, _: Request) -> Response:
        if self.snapshot is None:
            raise HTTPException(503, "starting: the bucket has not been read yet", {"retry-after": "2"})
        return _html(self._page(self.snapshot), _OWN)

    def _report(self, request: Request) -> Response:
        digest, name = request.path_params["digest"], request.path_params["name"]
        if not re.fullmatch(r"[0-9a-f]{64}", digest) or not re.fullmatch(r"(report|card|data)\.html", name):
            raise HTTPException(404)
        content = self._model.store.get(f"{self._model.folder}/reports/{digest}/{name}", _LARGEST)
        if content is None:
            raise HTTPException(404)
        return _html(content, _FOREIGN)

    def _rollout(self, request: Request) -> Response:
        page = page_of(self._model, request.path_params["rollout"])
        if page is None:
            raise HTTPException(404)
        return _html(page, _FOREIGN)

    async def _analysis(self, _: Request) -> Response:
        self._ask()
        return PlainTextResponse("the drift analysis runs next", 202, _HEADERS)


def _in_a_thread(page: Callable[[Request], Response]) -> Page:
    """What reads the bucket; all else is answered by the loop at once, which a busy controller delays least."""
    return lambda request: run_in_threadpool(page, request)


def _secret(authorization: str) -> str:
    """Of Bearer KEY, or the password of Basic; '' if it is neither."""
    kind, _, value = authorization.partition(" ")
    if kind.lower() == "bearer":
        return value
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[2] if kind.lower() == "basic" else ""
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _html(content: str | bytes, policy: str) -> Response:
    return Response(content, media_type="text/html", headers=_HEADERS | {"content-security-policy": policy})
