"""Hostile clients of 45 kinds, each a minute beside an honest one: nobody else waits, fails or pays for them.

One process each. Beside it 200 honest requests a second: their p99 at most three times that of a quiet minute, none fails; the
service grows by 100 MB at most; 30 s later no connection, byte or request is held.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil

from mlops import access, promotion
from mlops.environment import ROOT
from tests import synthetic
from tests.caller import Caller
from tests.hostile_client import Kind
from tests.service import BODY, Service, environment

RATE, SLOWER, GROWTH_MB, HELD_SECONDS = 200, 3.0, 100, 30
_FLOOR = 0.005  # seconds: less than that is not told apart from the noise of two cores


def _request(
    target: str, key: str = "", body: bytes = b"", *more: str, method: str = "", size: int | None = None
) -> bytes:
    length = len(body) if size is None else size
    head = [f"{method or ('POST' if body or size else 'GET')} {target} HTTP/1.1", "host: x", *more]
    head += [f"authorization: Bearer {key}"] if key else []
    head += [f"content-length: {length}"] if length and not any("chunked" in line for line in more) else []
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


def _kinds(key: str) -> dict[str, Kind]:
    """`key`: of its own, with the scopes of any caller."""
    row = json.dumps(synthetic.request())
    rows = f'{{"rows":[{",".join([row] * 10_000)}]}}'.encode()
    unknown = "".join(f'"u{n}":1,' for n in range(40_000))
    chunked = "transfer-encoding: chunked"
    ids = ",".join(f'{{"id":"{n:064x}","value":1}}' for n in range(10_000))
    strangers = {
        "says nothing": Kind(every=1, connections=600),
        "connects and leaves": Kind(closes=True, connections=4),
        "half a request line": Kind(b"GET /pre", every=1, connections=300),
        "half a head": Kind(b"GET / HTTP/1.1\r\nhost: x\r\n", every=1, connections=300),
        "a head, a byte at a time": Kind(b"GET / HTTP/1.1\r\nx: ", b"x", 0.2, 200),
        "blank lines now and then": Kind(b"", b"\r\n", 0.2, 200),
        "endless address": Kind(b"GET /", b"x" * 60_000),
        "endless header": Kind(b"GET / HTTP/1.1\r\nx: ", b"x" * 60_000),
        "endless headers": Kind(b"GET / HTTP/1.1\r\n", b"x: y\r\n" * 10_000),
        "no HTTP": Kind(b"\x16\x03\x01\x02\x00" * 100),
        "HTTP/2": Kind(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        "an upgrade": Kind(more=_request("/", "", b"", "connection: upgrade", "upgrade: websocket"), every=0.05),
        "unknown paths": Kind(more=_request("/nowhere")),
        "unknown methods": Kind(more=_request("/predict", method="PUT")),
        "no key": Kind(more=_request("/predict", "", b"{}")),
        "made-up keys": Kind(more=_request("/predict", "mlops_00000000_" + "x" * 43, b"{}")),
        "a large body without a key": Kind(more=_request("/predict", "", b" " * 2**20), connections=16),
        "half a body without a key": Kind(_request("/outcomes", "", b"{", size=1000), every=1, connections=300),
        "the page of the interface": Kind(more=_request("/openapi.json")),
        "the page of the interface, unread": Kind(more=_request("/openapi.json"), reads=False),
        "its scripts": Kind(more=_request("/static/swagger-ui-bundle.js"), connections=4, every=0.1),
        "its scripts, unread": Kind(more=_request("/static/swagger-ui-bundle.js"), reads=False, every=0.1),
        "metrics": Kind(more=_request("/metrics")),
        "probes": Kind(more=_request("/healthz")),
        "pipelines": Kind(more=_request("/healthz") * 200),
        "a compressed body": Kind(more=_request("/predict", "", b"x" * 1000, "content-encoding: gzip")),
        "a body that is said to be huge": Kind(_request("/predict", "", b"x", size=2**50), every=1, connections=200),
        "chunk extensions": Kind(_request("/predict", "", b"1;", chunked, method="POST"), b"x" * 60_000),
        "trailers": Kind(_request("/predict", "", b"0\r\n", chunked, method="POST"), b"x: y\r\n" * 10_000),
    }
    callers = {
        "half bodies": Kind(_request("/predict", key, b"{", size=1000), every=1, connections=300),
        "half of large bodies": Kind(_request("/predict", key, b" " * (BODY // 2), size=BODY), every=1, connections=20),
        "a body, a byte at a time": Kind(_request("/predict", key, b"{", size=1000), b" ", 0.2, 200),
        "bodies beyond the limit": Kind(more=_request("/predict", key, b" " * (BODY + 2)), connections=4, every=0.1),
        "chunks of a byte": Kind(_request("/predict", key, b"", chunked, method="POST"), b"1\r\nx\r\n" * 10_000),
        "no JSON": Kind(more=_request("/predict", key, b"{" * 60_000), connections=8),
        "NaN": Kind(
            more=_request("/predict", key, b'{"rows":[' + b"NaN," * 200_000 + b"0]}"), connections=4, every=0.1
        ),
        "a body of numbers": Kind(
            more=_request("/predict", key, b'{"rows":[[' + b"1," * (BODY // 2 - 20) + b"1]]}"), connections=4, every=0.1
        ),
        "the metrics, with a key": Kind(more=_request("/metrics", key)),
        "the model": Kind(more=_request("/model", key)),
        "names like paths": Kind(
            more=_request("/predict", key, f'{{"rows":[{row}],"- at `${".a" * 100_000}":1}}'.encode()),
            connections=4,
            every=0.1,
        ),
        "unknown fields": Kind(
            more=_request("/outcomes", key, f"{{{unknown}}}".replace(",}", "}").encode()), connections=4, every=0.1
        ),
        "unknown outcomes": Kind(
            more=_request("/outcomes", key, f'{{"outcomes":[{ids}]}}'.encode()), connections=2, every=0.2
        ),
        "large requests": Kind(more=_request("/predict", key, rows), connections=4, every=0.1),
        "large requests, unread": Kind(more=_request("/predict", key, rows), connections=8, every=0.1, reads=False),
        "requests beyond its rate": Kind(more=_request("/predict", key, f'{{"rows":[{row}]}}'.encode())),
    }
    return strangers | callers


KINDS = tuple(_kinds(""))


class Watch:
    """The service's memory and connections."""

    def __init__(self, service: Service):
        assert service.process
        self.service, self.process = service, psutil.Process(service.process.pid)

    def memory(self) -> float:
        return self.process.memory_info().rss / 2**20

    def held(self) -> dict[str, float]:
        connections = sum(
            each.status == "ESTABLISHED" and each.laddr.port == self.service.port
            for each in self.process.net_connections()
        )
        metrics = self.service.metric
        held = {"bytes": metrics("mlops_bytes_in_flight"), "requests": metrics("mlops_requests_in_flight")}
        return held | {"connections": connections - 1}  # that of the question

    def memory_during(self, seconds: float) -> Iterator[float]:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.2)
            yield self.memory()


def _honest(service: Service, seconds: float, watch: Watch, hostile: Kind | None) -> dict[str, float]:
    """What an honest caller sees meanwhile."""
    process = None
    if hostile:
        command = [sys.executable, "-m", "tests.hostile_client", str(service.port), str(seconds)]
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    bodies = [{"rows": [synthetic.request(size=n / 10)]} for n in range(20)]
    with Caller(service, bodies, RATE) as caller:
        if hostile and process and process.stdin and process.stdout:
            time.sleep(0.5)  # the caller has shown its key on each connection
            process.stdin.write(msgspec.json.encode(hostile))
            process.stdin.close()
            process.stdout.readline()  # it begins
        most = max(watch.memory_during(seconds))
    if process:
        process.wait(30)
    times = [answer.at - answer.sent for answer in caller.answers]
    return {"p99": statistics.quantiles(times, n=100)[98], "failed": len(caller.failed), "memory_mb": most}


def _let_go(watch: Watch) -> dict[str, float]:
    """What is still held after HELD_SECONDS, if anything is."""
    deadline = time.monotonic() + HELD_SECONDS
    while any((held := watch.held()).values()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return {name: value for name, value in held.items() if value}


def siege(service: Service, key: str, seconds: float, names: tuple[str, ...] = KINDS) -> dict[str, Any]:
    """The figures of each kind, and what is wrong with them."""
    watch, kinds, faults = Watch(service), {}, []
    quiet = _honest(service, seconds, watch, None)
    before = watch.memory()
    for name in names:
        found = _honest(service, seconds, watch, _kinds(key)[name])
        held = _let_go(watch)
        slower = found["p99"] / max(quiet["p99"], _FLOOR / SLOWER)
        kinds[name] = {
            "p99_ms": found["p99"] * 1000,
            "slower": slower,
            "failed": found["failed"],
            "memory_mb": found["memory_mb"],
            "held": held,
        }
        if slower > SLOWER or found["failed"] or found["memory_mb"] - before > GROWTH_MB or held:
            faults.append(
                f"{name}: {slower:.1f} times slower, {found['failed']} failed, {found['memory_mb'] - before:.0f} MB more, holds {held}"
            )
    return {"quiet_p99_ms": quiet["p99"] * 1000, "memory_mb": before, "kinds": kinds, "faults": faults}


def prove(folder: Path, seconds: float = 60, names: tuple[str, ...] = KINDS) -> dict[str, Any]:
    made = environment(folder)
    promotion.release(made.model(synthetic.MODEL), synthetic.publish(made, synthetic.build(seed=1)), "proof")
    _, key = access.new(made.store, "hostile", ["predict", "outcomes"], per_second=100)
    with Service(made, synthetic.MODEL) as service:
        service.serves(1)
        with httpx.Client(base_url=service.url, headers={"authorization": f"Bearer {key}"}) as other:
            service.until(lambda: other.get("/model").status_code == 200)
        found = siege(service, key, seconds, names)
    faults = found.pop("faults")
    figures = {"seconds_each": seconds, "honest_per_second": RATE}
    return {"holds": not faults and len(KINDS) >= 40, "reason": "; ".join(faults), **figures, **found}
