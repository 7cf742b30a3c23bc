"""uvicorn's HTTP protocol for every listener of ours: no client, hostile or half-open, holds what it may not hold.

And the head and the body of a response leave in one write: a process may be killed between two. The proxy repeats a
request whose response has not begun; one that has begun it can only break off.
"""

import asyncio
import socket
from collections import OrderedDict
from functools import partial
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

_FRAMING = 2  # bytes on the wire for one of a body
_CHUNKS, _CHUNK_BYTES = 64, 64  # and beyond so many chunks how large they are on average: each costs the same
KEY = "key"  # in the state of a request: the id of the API key that the application found for it
_BAD, _TOO_LARGE = (STATUS_LINE[status] + b"connection: close\r\ncontent-length: 0\r\n\r\n" for status in (400, 431))


def limited(body_bytes: int = 0) -> dict[str, Any]:
    """Arguments of uvicorn.Config. `body_bytes`: of the largest body that the application reads."""
    return {"http": partial(Protocol, Listener(body_bytes)), "ws": "none", "log_config": None, "access_log": False}


class Listener:
    """What the connections of a server share: limits, deadlines in seconds, and the order in which they last asked.

    One timer looks at all of them, so that a request costs none.
    """

    head_bytes = 16 * 1024  # request line and headers; as much framing of a small body
    headers = 100
    kernel_bytes = 128 * 1024  # that the kernel keeps of what was not read yet, for a connection
    head_seconds = 10.0  # from the connection, or the answer before, to a head that is whole
    body_seconds = 20.0
    answer_seconds = 20.0  # for a peer to read what does not fit into the buffers
    look_seconds = 1.0
    connections = 512
    refusals = 100  # of what is no HTTP, told in a second; who comes then hears nothing until its deadline
    pipelined = 8  # requests of one connection that wait for the answer before them

    def __init__(self, body_bytes: int):
        self.message_bytes = self.head_bytes + 2 * body_bytes
        self.open: OrderedDict[Protocol, None] = OrderedDict()
        self.refused = 0  # since the last look
        self._timer: asyncio.TimerHandle | None = None

    def add(self, connection: "Protocol") -> None:
        """Beyond their number the one that asked longest ago goes; of those who ever showed a key, none while another is
        there, and never one that waits for its answer."""
        if len(self.open) >= self.connections:
            strangers = (each for each in self.open if not (each.known or each.backed))
            gone = next(strangers, None) or next((each for each in self.open if not each.backed), connection)
            self.open.pop(gone, None)
            gone.transport.abort()
            if gone is connection:
                return
        self.open[connection] = None
        self._timer = self._timer or connection.loop.call_later(self.look_seconds, self._look)

    def _look(self) -> None:
        loop, self.refused = asyncio.get_running_loop(), 0
        for connection in list(self.open):
            if connection.overdue(loop.time()):
                connection.transport.abort()
        self._timer = loop.call_later(self.look_seconds, self._look) if self.open else None


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
    def __init__(self, listener: Listener, **told: Any):
        super().__init__(**told)
        self._listener, self._in_body, self._bytes, self._body, self._chunks = listener, False, 0, 0, 0
        self._seen, self._since = ("", None), self.loop.time()
        self.known = self._over = False

    @property
    def backed(self) -> bool:
        """Whether a request is being answered that has a KEY."""
        return bool(self.cycle and not self.cycle.response_complete and self.cycle.scope["state"].get(KEY))

    def overdue(self, now: float) -> bool:
        """Whether it has been in the same part of the same exchange for too long."""
        answered = self.cycle is None or self.cycle.response_complete
        if self.transport.is_closing() or (self.flow.write_paused and not answered):
            part = "answer"
        elif self._in_body:
            part = "body"
        else:
            part = "head" if answered else "application"
        if self._seen != (part, self.cycle):
            self._seen, self._since = (part, self.cycle), now
        return now - self._since > getattr(self._listener, f"{part}_seconds", float("inf"))

    def connection_made(self, transport: Any) -> None:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._listener.kernel_bytes)
        super().connection_made(OneWrite(transport))  # ty: ignore[invalid-argument-type]
        self._listener.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._listener.open.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """In pieces of a head at most: what the parser has taken of an unfinished one is known to a piece."""
        size = self._listener.head_bytes
        for start in range(0, len(data), size):
            if self._over or self.transport.is_closing():
                self.flow.pause_reading()
                return
            self._bytes += min(size, len(data) - start)
            super().data_received(data if len(data) <= size else data[start : start + size])
            if self._bytes > (
                min(self._listener.message_bytes, size + _FRAMING * self._body) if self._in_body else size
            ):
                self._refuse(_TOO_LARGE)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 (told in no words)
        self._refuse(_BAD)

    def _refuse(self, answer: bytes) -> None:
        if self._over or self.transport.is_closing():
            return
        self._over = True
        self._listener.refused += 1
        if self._listener.refused > self._listener.refusals:
            self.flow.pause_reading()
        elif self._in_body or (self.cycle and not self.cycle.response_complete):
            self.transport.abort()
        else:
            self.transport.write(answer)
            self.transport.close()

    # The parser's callbacks; what they raise ends the connection. `_bytes` counts from the piece after the one in which a
    # part began.
    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._bytes = 0

    def on_headers_complete(self) -> None:
        head = self._bytes and len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if head > self._listener.head_bytes:
            self._refuse(_TOO_LARGE)
            raise ValueError("the head is too large")
        if len(self.pipeline) >= self._listener.pipelined:
            raise ValueError("too many requests at once")
        super().on_headers_complete()
        self._in_body, self._bytes, self._body, self._chunks = True, 0, 0, 0
        if self in self._listener.open:
            self._listener.open.move_to_end(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body:
            raise ValueError("trailers, which nobody reads")
        if len(self.headers) >= self._listener.headers:
            self._refuse(_TOO_LARGE)
            raise ValueError("too many headers")
        super().on_header(name, value)

    def on_chunk_header(self) -> None:
        self._chunks += 1
        if self._chunks > _CHUNKS + self._body // _CHUNK_BYTES:
            raise ValueError("chunks too small")

    def on_body(self, body: bytes) -> None:
        self._body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_body, self._bytes = False, 0

    def on_response_complete(self) -> None:
        self.known = self.known or KEY in self.cycle.scope["state"]
        if not self.pipeline:
            self.cycle.body.clear()  # that nobody read
        super().on_response_complete()
