"""An answer is written at once, whatever its shape; no client holds what it may not hold, at any listener."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import uvicorn
from prometheus_client import CollectorRegistry

from app.main import create_app
from app.settings import Settings
from environments.local.platform import free_port
from mlops.environment import ROOT, Environment
from mlops.protocol import Listener, OneWrite, limited
from monitoring.page import Site


class Written(list[bytes]):
    write = list.append

    def close(self) -> None:
        self.append(b"closed")


def written(*parts: bytes, close: bool = False) -> list[bytes]:
    async def run() -> list[bytes]:
        transport = OneWrite(found := Written())
        for part in parts:
            transport.write(part)
        if close:
            transport.close()
        await asyncio.sleep(0)
        return found

    return asyncio.run(run())


HEAD, BODY = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n", b"{}"


def test_head_and_body_are_one_write() -> None:
    assert written(HEAD, BODY) == [HEAD + BODY]
    assert written(HEAD, BODY, HEAD, BODY) == [HEAD + BODY] * 2
    assert written(HEAD, b"more", b"HTTP/1.1 in a body", b"!") == [HEAD + b"more", b"HTTP/1.1 in a body!"]


def test_an_answer_without_a_body_leaves_too() -> None:
    assert written(HEAD) == [HEAD]
    assert written(HEAD, close=True) == [HEAD, b"closed"]
    assert written(HEAD, BODY, close=True) == [HEAD + BODY, b"closed"]


class Heard:
    """A listener of ours in a thread of this process, with short deadlines."""

    def __init__(self, server: uvicorn.Server, port: int):
        self.server, self.port = server, port
        self.listener: Listener = server.config.http.args[0]  # ty: ignore[missing-attribute]

    def connect(self, sent: bytes = b"") -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        connection.sendall(sent)
        return connection

    def answers(self) -> bool:
        return httpx.get(f"http://127.0.0.1:{self.port}/metrics", timeout=10).status_code == 200

    def forgets(self) -> bool:
        """Whether nothing is held in the end."""
        deadline = time.monotonic() + 10
        while self.listener.open and time.monotonic() < deadline:
            time.sleep(0.02)
        return not self.listener.open


def _told(environment: Environment) -> dict[str, Any]:
    places = {"bucket": environment.bucket, "keyring": environment.keyring, "spool": environment.home / "spool"}
    return {"env": environment.name, "model": "m", "log_key": "x" * 32, **places}


@pytest.fixture(params=["app", "page"])
def heard(request: pytest.FixtureRequest, environment: Environment, monkeypatch: pytest.MonkeyPatch) -> Iterator[Heard]:
    for name, seconds in {"head": 0.4, "body": 0.4, "answer": 0.4, "look": 0.05}.items():
        monkeypatch.setattr(Listener, f"{name}_seconds", seconds)
    port = free_port(27000 + os.getpid() % 997 * 3)
    if request.param == "page":
        server = Site(environment.model("m"), CollectorRegistry(), lambda: None).serve("127.0.0.1", port)
    else:
        app = create_app(Settings.model_validate(_told(environment)))
        server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", port, **limited(2**20)))
        threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.01)
    yield Heard(server, port)
    server.should_exit = True


_POST = b"POST /outcomes HTTP/1.1\r\nhost: x\r\n"
SILENT = {
    "nothing": b"",
    "blank lines": b"\r\n" * 20,
    "half a request line": b"GET /metr",
    "half a head": b"GET /metrics HTTP/1.1\r\nhost: x\r\nx-odd: ",
    "half a body": _POST + b"content-length: 1000\r\n\r\n{",
    "half a chunk": _POST + b"transfer-encoding: chunked\r\n\r\n5\r\nab",
    "half a trailer": _POST + b"transfer-encoding: chunked\r\n\r\n0\r\nx-more: ",
    "the continue that never came": _POST + b"content-length: 9\r\nexpect: 100-continue\r\n\r\n",
    "half of the next": b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\nGET /met",
    "an upgrade": b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
}


@pytest.mark.parametrize("said", SILENT.values(), ids=[*SILENT])
def test_who_says_no_more_keeps_nobody_waiting_and_is_let_go(heard: Heard, said: bytes) -> None:
    silent = [heard.connect(said) for _ in range(60)]
    assert heard.answers()
    for each in silent:
        with contextlib.suppress(ConnectionError):
            while each.recv(65536):
                pass
        each.close()
    assert heard.forgets()


@pytest.mark.parametrize("said", [b"GET /metrics HTTP/1.1\r\nx: ", _POST + b"content-length: 1000\r\n\r\n", b""])
def test_who_says_a_little_now_and_then_is_let_go_too(heard: Heard, said: bytes) -> None:
    with heard.connect(said) as slow, contextlib.suppress(ConnectionError):
        for _ in range(200):
            slow.sendall(b"\r\n" if not said else b"x")
            time.sleep(0.05)
    assert heard.answers()
    assert heard.forgets()


ENDLESS = {
    "address": (b"GET /", b"x" * 10_000),
    "header": (b"GET /metrics HTTP/1.1\r\nx: ", b"x" * 10_000),
    "headers": (b"GET /metrics HTTP/1.1\r\n", b"x: y\r\n" * 1_000),
    "chunk extension": (_POST + b"transfer-encoding: chunked\r\n\r\n1;", b"x" * 10_000),
    "trailers": (_POST + b"transfer-encoding: chunked\r\n\r\n0\r\n", b"x: y\r\n" * 1_000),
    "body": (_POST + b"content-length: 1000000000\r\n\r\n", b"x" * 10_000),
    "pipeline": (b"", b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n" * 1_000),
}


@pytest.mark.parametrize(("said", "more"), ENDLESS.values(), ids=[*ENDLESS])
def test_what_has_no_end_is_cut_off(heard: Heard, said: bytes, more: bytes) -> None:
    with heard.connect(said) as connection, pytest.raises(ConnectionError):
        connection.sendall(more * 4_000)  # megabytes
    assert heard.answers()
    assert heard.forgets()


def test_a_head_has_16_kib_in_one_piece_or_in_many(heard: Heard) -> None:
    for size, status in ((16_000, b"200"), (17_000, b"431"), (300_000, b"431")):
        head = b"GET /metrics HTTP/1.1\r\nhost: x\r\nx-odd: " + b"x" * size + b"\r\n\r\n"
        for piece in (len(head), 5_000):
            with heard.connect() as connection:
                with contextlib.suppress(ConnectionError):
                    for start in range(0, len(head), piece):
                        connection.sendall(head[start : start + piece])
                with contextlib.suppress(ConnectionResetError):
                    assert connection.recv(100)[9:12] == status


def test_a_head_has_100_headers(heard: Heard) -> None:
    for count, status in ((100, b"200"), (101, b"431")):
        with heard.connect(b"GET /metrics HTTP/1.1\r\n" + b"x: y\r\n" * count + b"\r\n") as connection:
            assert connection.recv(100)[9:12] == status


@pytest.mark.parametrize("heard", ["app"], indirect=True)
def test_chunks_may_be_few_or_large_but_not_many_and_small(heard: Heard) -> None:
    """Who is heard is told that a key is missing."""
    for size, count, heard_out in ((1, 60, True), (64, 2_000, True), (1, 1_000, False)):
        body = (b"%x\r\n" % size + b" " * size + b"\r\n") * count + b"0\r\n\r\n"
        with heard.connect() as connection, contextlib.suppress(ConnectionError):
            connection.sendall(_POST + b"transfer-encoding: chunked\r\n\r\n" + body)
            assert (connection.recv(100)[9:12] == b"401") is heard_out
    assert heard.answers()


def test_a_crowd_without_a_key_is_answered_one_by_one(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise all of it would be answered at the end of the same wait, and who has a key would wait for all of it."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def crowd(size: int) -> None:
        service: Any = create_app(Settings.model_validate(_told(environment)))
        monkeypatch.setattr("app.main.asyncio.sleep", sleep)
        monkeypatch.setattr("app.main.time.monotonic", lambda: 1000.0)
        for _ in range(size):
            await service._pace()

    asyncio.run(crowd(1000))
    assert slept[0] < 0.01
    assert slept[:50] == sorted({*slept[:50]})
    assert max(slept) <= 0.25


def test_beyond_its_connections_the_one_that_asked_longest_ago_goes(
    heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Listener, "head_seconds", 60.0)
    monkeypatch.setattr(Listener, "connections", 20)
    monkeypatch.setattr(
        heard.server.config, "timeout_keep_alive", 60
    )  # the honest one is idle for longer on a busy machine
    with httpx.Client(base_url=f"http://127.0.0.1:{heard.port}") as honest:
        silent = []
        for number in range(100):
            silent.append(heard.connect())
            if number % 8 == 0:  # a busy server may accept two such groups after it has heard the honest one
                assert honest.get("/metrics").status_code == 200
        assert len(heard.listener.open) <= 20
    for each in silent:
        each.close()
    assert heard.forgets()


@pytest.mark.parametrize("heard", ["app"], indirect=True)
def test_who_does_not_read_the_answer_is_let_go(heard: Heard) -> None:
    request = b"GET /static/swagger-ui-bundle.js HTTP/1.1\r\nhost: x\r\n\r\n"
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(heard.connect(request * 8))
        assert heard.answers()
        assert heard.forgets()


def test_every_listener_of_ours_has_these_limits() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "*.py", ":!tests"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    listens = re.compile(r"uvicorn\.(run|Config)\(|HTTPServer|start_http_server|\bstart_server\(|loop\.create_server")
    found = {path: (ROOT / path).read_text() for path in listed.stdout.split() if (ROOT / path).exists()}
    found = {path: text for path, text in found.items() if listens.search(text)}
    assert {"app/__main__.py", "monitoring/server.py"} <= {*found}
    assert [path for path, text in found.items() if "**limit" not in text] == []
