"""The rendered configuration in a real HAProxy, before stand-ins for the app that are killed."""

from __future__ import annotations

import hashlib
import random
import re
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from environments.local.platform import free_port
from tests.infra.rendering import render

pytestmark = pytest.mark.skipif(not shutil.which("haproxy"), reason="needs HAProxy: apt-get install haproxy")
_APP = """
import hashlib, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer(b"")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        time.sleep(0.02)
        self.answer(hashlib.sha256(body).hexdigest().encode())

    def answer(self, body):
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

ThreadingHTTPServer.handle_error = lambda *_: None  # of a check that went away
ThreadingHTTPServer.daemon_threads = True
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


class Proxied:
    """HAProxy and two pods of the app; `pods` may be killed and started again."""

    def __init__(self, folder: Path, **changed: str):
        self.port, self.probes = free_port(21000), free_port(22000)
        ports = [free_port(number) for number in (23000, 24000)]
        servers = "\n  ".join(f"server pod{n} 127.0.0.1:{port}" for n, port in enumerate(ports))
        changed |= {":8080$": f":{self.port}", ":8405$": f":{self.probes}", "server-template .*": servers}
        changed |= {r"resolvers cluster\n(  .*\n)*": "", " *resolvers cluster resolve-prefer ipv4 init-addr none": ""}
        text = re.sub(r"default-server\n", "", _replaced(configuration(), changed))
        (folder / "haproxy.cfg").write_text(text)
        self._commands = [[sys.executable, "-c", _APP, str(port)] for port in ports]
        self.pods = [subprocess.Popen(command) for command in self._commands]
        self._haproxy = subprocess.Popen(
            ["haproxy", "-db", "-f", str(folder / "haproxy.cfg")], stderr=subprocess.DEVNULL
        )
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30, trust_env=False)
        self.until_answered()

    def until_answered(self) -> None:
        for _ in range(300):
            try:
                if self.http.post("/predict", content=b"").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise AssertionError("HAProxy answers nobody")

    def replace(self, number: int) -> None:
        self.pods[number].kill()
        self.pods[number].wait()
        self.pods[number] = subprocess.Popen(self._commands[number])

    def connect(self, address: str = "127.0.0.2") -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30, source_address=(address, 0))

    def stop(self) -> None:
        self.http.close()
        for process in (self._haproxy, *self.pods):
            process.kill()
            process.wait()


def configuration() -> str:
    maps = [each for each in render("kind").objects if each["kind"] == "ConfigMap"]
    (found,) = (each["data"]["haproxy.cfg"] for each in maps if "haproxy.cfg" in each["data"])
    return found


def _replaced(text: str, changes: dict[str, str]) -> str:
    for what, instead in changes.items():
        text, times = re.subn(what, instead, text, flags=re.MULTILINE)
        assert times, what
    return text


@pytest.fixture
def proxied(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Proxied]:
    found = Proxied(tmp_path, **getattr(request, "param", {}))
    yield found
    found.stop()


def test_a_killed_pod_loses_no_request_of_20_to_60_kib(proxied: Proxied) -> None:
    answers: list[bool | str] = []
    done = threading.Event()

    def call(number: int) -> None:
        numbers = random.Random(number)
        with httpx.Client(base_url=proxied.http.base_url, timeout=30, trust_env=False) as http:
            while not done.is_set():
                body = numbers.randbytes(numbers.randint(20, 60) * 1024)
                try:
                    answers.append(http.post("/predict", content=body).text == hashlib.sha256(body).hexdigest())
                except httpx.TransportError as error:
                    answers.append(type(error).__name__)

    callers = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for caller in callers:
        caller.start()
    for number in range(6):
        time.sleep(2)  # until the other one counts again
        proxied.replace(number % 2)
    done.set()
    for caller in callers:
        caller.join()
    assert len(answers) > 100
    assert [answer for answer in answers if answer is not True] == []


def test_one_address_cannot_take_the_connections_of_all_others(proxied: Proxied) -> None:
    share = int(re.findall(r"sc0_conn_cur gt (\d+)", configuration())[0])
    silent = [proxied.connect() for _ in range(share + 8)]
    proxied.until_answered()
    refused, _, _ = select.select(silent, [], [], 0)
    assert len(refused) == 8
    for each in silent:
        each.close()


@pytest.mark.parametrize("proxied", [{"^  maxconn 2048$": "  maxconn 4", "timeout http-request .*": "timeout http-request 2s"}],
                         indirect=True)  # fmt: skip
@pytest.mark.parametrize(
    "said", [b"", b"POST /predict HTTP/1.1\r\nhost", b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{"]
)
def test_clients_that_fall_silent_are_cut_off_and_never_keep_the_probes_out(proxied: Proxied, said: bytes) -> None:
    proxied.http.close()
    silent = [proxied.connect() for _ in range(5)]
    for each in silent:
        each.sendall(said)
    assert httpx.get(f"http://127.0.0.1:{proxied.probes}/healthz", trust_env=False).status_code == 200
    for each in silent[:4]:
        while each.recv(1024):
            pass
        each.close()
    proxied.http = httpx.Client(base_url=f"http://127.0.0.1:{proxied.port}", timeout=30, trust_env=False)
    proxied.until_answered()
    silent[4].close()
