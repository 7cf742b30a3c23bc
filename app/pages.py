import asyncio
import math
import time
from typing import Any, NamedTuple

from fastapi import FastAPI

from app.watcher import Watcher

_METRICS, _METRICS_SECONDS = "/metrics", 1.0
_PIECE = 64 * 1024  # bytes: what a peer who reads nothing makes us keep


class _Page(NamedTuple):
    start: Any
    body: bytes
    until: float


class OpenPages:
    """Pages that need no key are the same for everybody: made once for each model served, and the metrics once a second, or
    whenever somebody with a key asks."""

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
            if page is None or page.until < time.monotonic() or (fresh and path == _METRICS):
                page = await self._make(scope)
                if page.start["status"] == 200 and path not in ("/healthz", "/readyz"):
                    self._kept[path] = page
        await send({**page.start, "headers": list(page.start["headers"])})
        for start in range(0, len(page.body), _PIECE):
            await send({"type": "http.response.body", "body": page.body[start : start + _PIECE], "more_body": True})
        await send({"type": "http.response.body"})

    async def _make(self, scope: Any) -> _Page:
        """As for a caller who sends no headers and asks for nothing special."""
        sent: list[Any] = []

        async def receive() -> Any:
            return await asyncio.get_running_loop().create_future()  # no body comes, and nobody goes

        async def keep(message: Any) -> None:
            sent.append(message)

        until = time.monotonic() + _METRICS_SECONDS if scope["path"] == _METRICS else math.inf
        await self._pages({**scope, "method": "GET", "headers": [], "query_string": b""}, receive, keep)
        return _Page(sent[0], b"".join(message.get("body", b"") for message in sent[1:]), until)
