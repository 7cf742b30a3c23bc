"""A model on trial, in a process of its own: `python -m app.challenger SOCKET FOLDER MEMORY_MB`.

Whatever it does there (raises, hangs, eats memory, dies) reaches nobody: the champion's answer is at hand, and a caller
waits for the challenger no longer than the contract's budget.
"""

from __future__ import annotations

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

from mlops.bundle import Bundle

log = logging.getLogger("app.challenger")
_LENGTH = struct.Struct(">I")
_START_SECONDS = 20.0
_HANGS_SECONDS = 2.0  # beyond its budget: then it is killed
_TIMED = 4  # of the requests that come together
_ROWS_A_BUDGET = 64  # a larger request may take as many budgets as it has times these rows
_WINDOW, _FAULTS = 20, 5  # so many of the last attempts open the breaker
_OPEN_SECONDS = 30.0
_START_AGAIN_SECONDS = 5.0  # at most so often


class Scores(msgspec.Struct, omit_defaults=True):
    """What the challenger made of one request; `seconds` are its own, without the way to it and back, if it was timed."""

    scores: list[float] | None = None
    seconds: float | None = None
    fault: str | None = None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[Scores]).decode


class _Breaker:
    """Opens at repeated failure: no caller waits for the challenger, which goes on to score in shadow. Closes once that goes
    well again, and a while has passed."""

    def __init__(self) -> None:
        self._last: deque[bool] = deque(maxlen=_WINDOW)
        self.open, self._until = False, 0.0

    def saw(self, fault: bool) -> None:
        self._last.append(fault)
        if sum(self._last) >= _FAULTS:
            self.open, self._until = True, time.monotonic() + _OPEN_SECONDS
        elif time.monotonic() > self._until:
            self.open = False


class Challenger:
    """`score` from any thread; one at a time."""

    def __init__(self, bundle: Bundle, digest: str, budget_ms: float, memory_mb: int):
        self.digest, self.contract = digest, bundle.contract
        self.breaker = _Breaker()
        self._budget = budget_ms / 1000
        self._memory_mb, self._lock = memory_mb, threading.Lock()
        self._folder = tempfile.TemporaryDirectory(prefix="challenger-")
        bundle.unpack(Path(self._folder.name))
        self._process: subprocess.Popen[bytes] | None = None
        self._owed, self._started, self._closed = 0, 0.0, False
        self._start()

    def budget(self, rows: int) -> float:
        """Seconds that a request of so many rows may take."""
        return self._budget * max(1.0, rows / _ROWS_A_BUDGET)

    def score(self, requests: Sequence[Sequence[Any]], seconds: float) -> list[Scores]:
        """One answer a request (a list of rows), or the same fault for all. A slow one that came has its scores all the same."""
        if self._closed:
            return [Scores(fault="busy")] * len(requests)
        due = time.monotonic() + seconds
        if not self._lock.acquire(timeout=seconds / 2):  # others have it: that is not the model's fault
            return [Scores(fault="busy")] * len(requests)
        try:
            found = self._ask(_encode(requests), due)
        except TimeoutError:
            found = [Scores(fault="slow")] * len(requests)
        except (OSError, msgspec.DecodeError):
            self._kill()
            found = [Scores(fault="died")] * len(requests)
        finally:
            self._lock.release()
        for each, rows in zip(found, requests, strict=True):
            if each.fault is None and each.seconds is not None and each.seconds > self.budget(len(rows)):
                each.fault = "slow"
            self.breaker.saw(each.fault not in (None, "busy"))
        return found

    def revive(self) -> None:
        """Start it again if it died, or hangs; takes as long as loading does, so no request does this."""
        with self._lock:
            if self._owed:
                with contextlib.suppress(OSError, msgspec.DecodeError):
                    self._drain(time.monotonic() + _HANGS_SECONDS)
                if self._owed:
                    self._kill()
            if self._process is None and not self._closed and time.monotonic() > self._started + _START_AGAIN_SECONDS:
                try:
                    self._start()
                except OSError as error:
                    log.warning("challenger does not start: %s", error)
                    self._kill()
                    self.breaker.saw(fault=True)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._kill()
            self._folder.cleanup()

    def _start(self) -> None:
        self._started = time.monotonic()
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "app.challenger", str(theirs.fileno()), self._folder.name, str(self._memory_mb)]
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        self._socket, self._owed = ours, 1
        self._drain(time.monotonic() + _START_SECONDS)

    def _kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            self._socket.close()
        self._process = None

    def _ask(self, body: bytes, due: float) -> list[Scores]:
        if self._process is None:
            raise OSError("not running")
        self._drain(due)
        self._socket.settimeout(max(0.001, due - time.monotonic()))
        try:
            self._socket.sendall(_LENGTH.pack(len(body)) + body)
        except TimeoutError:  # half of it is on its way: what comes next could not be told from the rest
            raise OSError("takes nothing any more") from None
        self._owed += 1
        answer = _receive(self._socket, due)
        self._owed -= 1
        return _decode(answer)

    def _drain(self, due: float) -> None:
        """What it answered too late."""
        while self._owed:
            _receive(self._socket, due)
            self._owed -= 1


def _receive(connection: socket.socket, due: float | None = None) -> bytes:
    """A whole message; TimeoutError leaves it in the socket as long as none of it was read."""
    first = _exactly(connection, _LENGTH.size, due, peek=True)
    body = _exactly(connection, _LENGTH.size + _LENGTH.unpack(first)[0], due and due + _HANGS_SECONDS)
    return body[_LENGTH.size :]


def _exactly(connection: socket.socket, length: int, due: float | None, peek: bool = False) -> bytes:
    data = b""
    while len(data) < length:
        connection.settimeout(None if due is None else max(0.0005, due - time.monotonic()))
        part = connection.recv(length - len(data), socket.MSG_PEEK | socket.MSG_WAITALL if peek else 0)
        if not part:
            raise OSError("closed")
        data = part if peek else data + part
    return data


def _serve(connection: socket.socket, folder: Path, memory_mb: int) -> None:
    from mlops.model import Model
    from mlops.probe import limit_memory

    os.nice(10)  # where the processor is short the champion goes first
    limit_memory(memory_mb)
    bundle = Bundle.unpacked(folder)
    model = Model(bundle, "")
    model.warm(bundle)
    decode = msgspec.json.Decoder(list[list[model.schema.Row]]).decode  # ty: ignore[invalid-type-form]
    reply = b"[]"  # ready
    while True:
        connection.sendall(_LENGTH.pack(len(reply)) + reply)
        body = _receive(connection)
        try:
            requests = decode(body)
        except msgspec.ValidationError:  # of another contract than the champion's
            reply = _encode([Scores(fault="error")] * len(msgspec.json.decode(body)))
            continue
        reply = _encode(_attempts(model, requests))


def _attempts(model: Any, requests: list[list[Any]]) -> list[Scores]:
    """Some are timed, each alone; the rest are scored at once, which takes little from the champion. Where those fail together,
    each for itself shows whose fault it is."""
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
