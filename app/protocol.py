"""uvicorn's HTTP protocol, except that the head and the body of a response leave in one write.

A process may be killed between two writes. The proxy repeats a request whose response has not begun; one that has begun
it can only break off.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class OneWrite:
    """A transport that holds the head back until the body comes, or until the next turn of the loop if there is none."""

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
