"""HTTP as uvicorn speaks it, but for one thing: the head of an answer and its body leave in one write.

A process may be killed between two writes. Of an answer that had not begun the proxy asks another replica; one that had
begun it can only break off.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class OneWrite:
    """A transport that keeps the head back until the body comes, or, where there is none, until the loop goes on."""

    def __init__(self, transport: Any):
        self._transport, self._head = transport, b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if data.startswith(b"HTTP/1.1 ") and not self._head:
            self._head = data
            asyncio.get_running_loop().call_soon(self._flush)
        else:
            data, self._head = self._head + data, b""
            self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._head:
            self.write(b"")


class Protocol(HttpToolsProtocol):
    def connection_made(self, transport: Any) -> None:
        super().connection_made(OneWrite(transport))  # ty: ignore[invalid-argument-type]
