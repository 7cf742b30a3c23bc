"""The challenger of a rollout, in a process of its own: `python -m app.challenger SOCKET FOLDER MEMORY_MB`.

Whatever it does there (raises, hangs, eats memory, dies) harms no caller: the champion's answer is ready, and a caller
waits for the challenger no longer than the contract's budget.
"""

import asyncio
import contextlib
import logging
import math
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import msgspec

from app.batch import Scores
from mlops import processes, sandbox
from mlops.bundle import Bundle

log = logging.getLogger("app.challenger")
_LENGTH = struct.Struct(">I")
_START_SECONDS = 20.0
_HANGS_SECONDS = 2.0  # on an abandoned request: then it is killed
_IN_LINE = 8  # later requests get the champion's answer at once
_TIMED = 4  # of the requests that arrive together
_ROWS_A_BUDGET = 64  # the budget grows with the request, one per 64 rows
_WINDOW, _FAULTS = 20, 5  # 5 failures in the last 20 attempts open the breaker
_OPEN_SECONDS = 30.0
_RESTART_SECONDS = 5.0  # between two starts, at least


_encode = msgspec.json.Encoder(enc_hook=str).encode  # moments
_decode = msgspec.json.Decoder(list[Scores]).decode


class _Breaker:
    """Opens at repeated failure: no caller waits for the challenger, which continues to score in shadow. Closes after a
    while, once that succeeds again."""

    def __init__(self) -> None:
        self._last: deque[bool] = deque(maxlen=_WINDOW)
        self.open, self._until = False, 0.0

    def saw(self, fault: bool) -> None:
        self._last.append(fault)
        if sum(self._last) >= _FAULTS:
            self.open, self._until = True, time.monotonic() + _OPEN_SECONDS
        elif time.monotonic() > self._until:
            self.open = False


class _Connection(asyncio.Protocol):
    """Answers come in the order of the requests, abandoned ones included, which delay the next."""

    def __init__(self) -> None:
        self.waiting: deque[asyncio.Future[bytes]] = deque()
        self.turn = 0.0  # when the model began with the first
        self.lost = False
        self._received = bytearray()

    def ask(self, body: bytes) -> asyncio.Future[bytes]:
        if self.lost:
            raise OSError("not running")
        if not self.waiting:
            self.turn = time.monotonic()
        self.waiting.append(asyncio.get_running_loop().create_future())
        self._transport.write(_LENGTH.pack(len(body)) + body)
        return self.waiting[-1]

    def stuck(self, seconds: float, mine: asyncio.Future[bytes] | None = None) -> bool:
        """Whether the first request, if it is mine or abandoned, has taken longer than `seconds`."""
        first = self.waiting[0] if self.waiting else None
        return first is not None and (first is mine or first.cancelled()) and time.monotonic() - self.turn > seconds

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while len(self._received) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._received)[0]
            if len(self._received) < end:
                return
            first, self.turn = self.waiting.popleft(), time.monotonic()
            if not first.cancelled():
                first.set_result(bytes(self._received[_LENGTH.size : end]))
            del self._received[:end]

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        for each in self.waiting:
            if not each.cancelled():
                each.set_exception(exc or OSError("closed"))


class Challenger:
    """Called in the event loop; created, revived and closed, which takes a while, in any other thread."""

    def __init__(self, bundle: Bundle, digest: str, budget_ms: float, memory_mb: int, loop: asyncio.AbstractEventLoop):
        self.digest, self.contract = digest, bundle.contract
        self.breaker = _Breaker()
        self._budget = budget_ms / 1000
        self._memory_mb, self._loop, self._lock = memory_mb, loop, threading.Lock()
        self._folder = tempfile.TemporaryDirectory(prefix="challenger-")
        bundle.unpack(Path(self._folder.name))
        self._closed = False
        self._start()

    def budget(self, rows: int) -> float:
        """Seconds that a request of this many rows may take."""
        return self._budget * max(1.0, rows / _ROWS_A_BUDGET)

    async def score(self, requests: Sequence[Sequence[Any]], seconds: float) -> list[Scores]:
        """One answer for each request (a list of rows), or the same fault for all. A late answer still has its scores."""
        found = await self._ask(requests, seconds)
        for each, rows in zip(found, requests, strict=True):
            if each.fault is None and each.seconds is not None and each.seconds > self.budget(len(rows)):
                each.fault = "slow"
            self.breaker.saw(each.fault not in (None, "busy"))
        return found

    async def _ask(self, requests: Sequence[Sequence[Any]], seconds: float) -> list[Scores]:
        connection, mine, fault = self._connection, None, "busy"
        try:
            if len(connection.waiting) < _IN_LINE:
                mine = connection.ask(_encode(requests))
                async with asyncio.timeout(seconds):
                    return _decode(await mine)
        except TimeoutError:
            pass
        except OSError:
            fault = "died"
        except msgspec.DecodeError:
            self._process.kill()
            fault = "died"
        if self._closed:
            fault = "busy"
        # Otherwise another request had it: not the model's fault.
        elif fault == "busy" and connection.stuck(seconds / 2, mine):
            fault = "slow"
        return [Scores(fault=fault) for _ in requests]

    def down(self) -> bool:
        """Whether `revive` is due: it died, or is killed now because it hangs."""
        if self._connection.stuck(_HANGS_SECONDS):
            self._process.kill()
        return self._connection.lost and time.monotonic() > self._started + _RESTART_SECONDS

    def revive(self) -> None:
        """Takes as long as loading does."""
        with self._lock:
            if not self._closed:
                self._end()
                try:
                    self._start()
                except OSError as error:
                    log.warning("challenger does not start", extra={"error": str(error)})
                    self.breaker.saw(fault=True)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._end()
            self._folder.cleanup()

    def _start(self) -> None:
        self._started = time.monotonic()
        ours, theirs = socket.socketpair()
        address = [str(theirs.fileno()), self._folder.name, str(self._memory_mb)]
        command = [sys.executable, "-m", "app.challenger", *address]
        self._process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=sandbox.ENVIRONMENT,
            start_new_session=True,
        )
        theirs.close()
        try:
            ours.settimeout(_START_SECONDS)
            _receive(ours)  # ready
            connecting = self._loop.create_connection(_Connection, sock=ours)
            connected = asyncio.run_coroutine_threadsafe(connecting, self._loop)
            self._connection: _Connection = connected.result(_START_SECONDS)[1]
        except OSError:
            self._end()
            ours.close()
            raise

    def _end(self) -> None:
        sandbox.end(self._process)


def _receive(connection: socket.socket) -> bytes:
    return _exactly(connection, _LENGTH.unpack(_exactly(connection, _LENGTH.size))[0])


def _exactly(connection: socket.socket, length: int) -> bytes:
    data = connection.recv(length, socket.MSG_WAITALL)
    if len(data) < length:
        raise OSError("closed")
    return data


def _serve(connection: socket.socket, folder: Path, memory_mb: int) -> None:
    from mlops.model import Model

    os.nice(10)  # the champion goes first when CPU is short
    processes.flush_denormals()
    sandbox.limit_memory(memory_mb)
    bundle = Bundle.unpacked(folder)
    model = Model(bundle, "")
    model.warm(bundle)
    decode = model.schema.decoder(list[list[model.schema.Row]]).decode  # ty: ignore[invalid-type-form]
    reply = b"[]"  # ready
    while True:
        connection.sendall(_LENGTH.pack(len(reply)) + reply)
        body = _receive(connection)
        try:
            requests = decode(body)
        except msgspec.ValidationError:  # its contract is not the champion's
            reply = _encode([Scores(fault="error")] * len(msgspec.json.decode(body)))
            continue
        reply = _encode(_attempts(model, requests))


def _attempts(model: Any, requests: list[list[Any]]) -> list[Scores]:
    """Some are timed, each alone; the rest are scored together, which takes less CPU from the champion. If that fails,
    scoring each alone shows which one is at fault."""
    timed, rest = [_attempt(model, rows) for rows in requests[:_TIMED]], requests[_TIMED:]
    if not rest:
        return timed
    together = _attempt(model, list(chain.from_iterable(rest)))
    if together.scores is None:
        return [*timed, *(_attempt(model, rows) for rows in rest)]
    scores = iter(together.scores)
    return [*timed, *(Scores(list(islice(scores, len(rows)))) for rows in rest)]


def _attempt(model: Any, rows: list[Any]) -> Scores:
    started = time.perf_counter()
    try:
        scores = model.score(rows)
    except Exception:
        return Scores(fault="error", seconds=time.perf_counter() - started)
    seconds = time.perf_counter() - started
    if len(scores) != len(rows) or not all(map(math.isfinite, scores)):
        return Scores(fault="nan", seconds=seconds)
    return Scores(scores, seconds)


if __name__ == "__main__":
    with contextlib.suppress(OSError):  # the parent is gone
        _serve(socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3]))
