"""Requests from a process of their own: where times are measured, the caller must not wait for the interpreter of the test.

`python -m tests.caller`: what to do is the first line of stdin; it ends when stdin does, and the answers are written.
"""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import uvloop

from mlops.environment import ROOT


class Answer(NamedTuple):
    """`sent` and `at` (of the answer) are Unix seconds; status 0 is no answer at all."""

    sent: float
    at: float
    status: int
    revision: int
    model_version: str


class _Body(msgspec.Struct):
    revision: int = 0
    model_version: str = ""


_body = msgspec.json.Decoder(_Body).decode


class Caller:
    """Calls while its block runs: at a constant rate, however long the answers take, or as fast as they come."""

    def __init__(
        self, service: Any, bodies: Sequence[dict[str, Any]], per_second: float | None = None, connections: int = 16
    ):
        head = f"POST /predict HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\nauthorization: Bearer {service.key}\r\n"
        requests = [
            f"{head}content-length: {len(body)}\r\n\r\n{body}" for body in map(json.dumps, bodies)
        ]  # plain ASCII
        self._told = {"port": service.port, "requests": requests, "per_second": per_second, "connections": connections}
        self.answers: list[Answer] = []

    def __enter__(self) -> Caller:
        command = [sys.executable, "-m", "tests.caller"]
        self._out = tempfile.NamedTemporaryFile()
        told = json.dumps(self._told | {"out": self._out.name})
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(told.encode() + b"\n")
        self._process.stdin.flush()
        self._process.stdout.readline()  # the connections are open
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)
        with self._out:
            self.answers = msgspec.json.decode(self._out.read(), type=list[Answer])

    @property
    def failed(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.status != 200]


class _Calls:
    """What is to be asked, by the connections that are free."""

    def __init__(self, requests: list[str], per_second: float | None):
        self.answers: list[Answer] = []
        self._requests, self._per_second = [request.encode() for request in requests], per_second
        self._free: deque[_Connection] = deque()
        self._due: deque[float] = deque()
        self._number, self.going = 0, True

    def free(self, connection: _Connection) -> None:
        if self._per_second is None and self.going:
            self._ask(connection, time.time())
        elif self._due:
            self._ask(connection, self._due.popleft())
        else:
            self._free.append(connection)

    def _ask(self, connection: _Connection, sent: float) -> None:
        self._number += 1
        connection.ask(self._requests[self._number % len(self._requests)], sent)

    async def keep_the_rate(self, per_second: float) -> None:
        started, asked = time.time(), 0
        while self.going:
            asked += 1
            await asyncio.sleep(max(0.0, started + asked / per_second - time.time()))
            if self._free:
                self._ask(self._free.popleft(), time.time())
            else:
                self._due.append(time.time())


class _Connection(asyncio.Protocol):
    def __init__(self, calls: _Calls):
        self._calls, self._received, self.sent = calls, b"", 0.0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def ask(self, request: bytes, sent: float) -> None:
        self.sent = sent
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found or len(body) < int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]):
            return
        status, self._received = int(head[9:12]), b""
        said = _body(body) if status == 200 else _Body()
        self._answered(status, said)
        self._calls.free(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.sent:
            self._answered(0, _Body())

    def _answered(self, status: int, said: _Body) -> None:
        self._calls.answers.append(Answer(self.sent, time.time(), status, said.revision, said.model_version))
        self.sent = 0.0


async def _call(told: dict[str, Any]) -> list[Answer]:
    loop, calls = asyncio.get_running_loop(), _Calls(told["requests"], told["per_second"])
    connections = [
        (await loop.create_connection(lambda: _Connection(calls), "127.0.0.1", told["port"]))[1]
        for _ in range(told["connections"])
    ]
    print(flush=True)
    ended = loop.run_in_executor(None, sys.stdin.read)
    for connection in connections:
        calls.free(connection)
    pace = asyncio.create_task(calls.keep_the_rate(told["per_second"])) if told["per_second"] else None
    await ended
    calls.going = False
    if pace:
        await pace
    deadline = time.time() + 10
    while any(connection.sent for connection in connections) and time.time() < deadline:
        await asyncio.sleep(0.01)
    unanswered = [Answer(connection.sent, time.time(), 0, 0, "") for connection in connections if connection.sent]
    return calls.answers + unanswered


if __name__ == "__main__":
    gc.disable()  # its own pauses would be measured
    told = json.loads(sys.stdin.readline())
    Path(told["out"]).write_bytes(msgspec.json.encode(uvloop.run(_call(told))))
