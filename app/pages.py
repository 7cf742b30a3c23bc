import asyncio
import math
import time
from typing import Any, NamedTuple

from fastapi import FastAPI

from app.watcher import Watcher

_METRICS_SECONDS = 1.0
_LARGE = 64 * 1024  # bytes


class _Page(NamedTuple):
    start: Any
    body: bytes
    until: float


class OpenPages:
    """Pages that need no key are the same for everybody: made once for each model served, and the metrics once a second."""

    def __init__(self, pages: FastAPI, watcher: Watcher):
        self._pages, self._watcher = pages, watcher
        self._of: object = None
        self._kept: dict[str, _Page] = {}
        self._making = asyncio.Lock()

    async def answer(self, scope: Any, send: Any, fresh: bool) -> None:
        path = scope["path"]
        async with self._making:
            if self._of is not self._watcher.live:
                self._of = self._watcher.live
                self._kept.clear()
            page = self._kept.get(path)
            if page is None or fresh or page.until < time.monotonic():
                page = await self._make(scope)
                if page.start["status"] == 200 and path not in ("/healthz", "/readyz"):
                    self._kept[path] = page
        await send({**page.start, "headers": list(page.start["headers"])})
        await send_body(send, page.body)

    async def _make(self, scope: Any) -> _Page:
        """As for a caller who sends no headers and asks for nothing special."""
        sent: list[Any] = []

        async def receive() -> Any:
            return await asyncio.get_running_loop().create_future()  # no body comes, and nobody goes

        async def keep(message: Any) -> None:
            sent.append(message)

        until = time.monotonic() + _METRICS_SECONDS if scope["path"] == "/metrics" else math.inf
        await self._pages({**scope, "method": "GET", "headers": [], "query_string": b""}, receive, keep)
        return _Page(sent[0], b"".join(message.get("body", b"") for message in sent[1:]), until)


async def send_body(send: Any, body: bytes) -> None:
    """Returns once the peer has taken a large one, or is gone."""
    if large := len(body) > _LARGE:
        await send({"type": "http.response.body", "body": body, "more_body": True})
    await send({"type": "http.response.body", "body": b"" if large else body})
