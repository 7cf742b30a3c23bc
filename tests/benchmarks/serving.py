"""`make bench`: the app with everything on (keys, validation, model, prediction log, metrics) against FastAPI doing
nothing with the same schema. One process each, single-row requests, rounds interleaved: ratios, not absolute figures."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import uvloop

from environments.local.platform import free_port
from mlops import promotion
from mlops.contract import Contract
from tests import service, synthetic

_CONNECTIONS, _SECONDS, _ROUNDS, _EXPECTED = 16, 3.0, 7, 1.5
_NUMBERS = [f"n{i}" for i in range(11)]
_CATEGORIES = {"c0": 16, "c1": 3, "c2": 100}

_BARE = """
import sys
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field

class Row(BaseModel):
    model_config = ConfigDict(extra="forbid")
    {fields}

class PredictRequest(BaseModel):
    rows: list[Row] = Field(min_length=1, max_length=10000)
    key: str | None = None

class Prediction(BaseModel):
    id: str
    prediction: float
    score: float

class Answer(BaseModel):
    model_version: str
    revision: int
    predictions: list[Prediction]

app = FastAPI()

@app.post("/predict")
async def predict(body: PredictRequest) -> Answer:
    return Answer(model_version="0" * 64, revision=1, predictions=[Prediction(id="0" * 36, prediction=1, score=0.5) for _ in body.rows])

uvicorn.run(app, port=int(sys.argv[1]), access_log=False, log_level="warning")
"""


class _Caller(asyncio.Protocol):
    """One connection: the next request goes out when an answer has come in whole."""

    def __init__(self, request: bytes, until: float):
        self.request, self.until, self.answers, self.received = request, until, 0, b""
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, found, body = self.received.partition(b"\r\n\r\n")
        if not found or len(body) < int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]):
            return
        assert head.startswith(b"HTTP/1.1 200"), self.received
        self.answers, self.received = self.answers + 1, b""
        if time.monotonic() < self.until:
            self.transport.write(self.request)
        elif not self.done.done():
            self.transport.close()
            self.done.set_result(None)


async def _load(port: int, request: bytes) -> float:
    """Requests a second."""
    started = time.monotonic()
    loop, until = asyncio.get_running_loop(), started + _SECONDS
    callers = [
        (await loop.create_connection(lambda: _Caller(request, until), "127.0.0.1", port))[1]
        for _ in range(_CONNECTIONS)
    ]
    await asyncio.gather(*(caller.done for caller in callers))
    return sum(caller.answers for caller in callers) / (time.monotonic() - started)


def _round(port: int, pid: int, request: bytes) -> tuple[float, float]:
    """(requests a second, CPU microseconds of the server a request)."""
    process = psutil.Process(pid)
    before = process.cpu_times()
    rate = uvloop.run(_load(port, request))
    after = process.cpu_times()
    cpu = (after.user + after.system) - (before.user + before.system)
    return rate, cpu / (rate * _SECONDS) * 1e6


def _problem() -> tuple[Contract, pl.DataFrame]:
    random = np.random.default_rng(0)
    n = 20_000
    columns: dict[str, Any] = {name: random.normal(size=n).round(2) for name in _NUMBERS}
    columns |= {name: [f"v{v}" for v in random.integers(0, levels, n)] for name, levels in _CATEGORIES.items()}
    columns["y"] = (columns["n0"] + columns["n1"] + random.normal(size=n) > 0).astype(int)
    numbers = {name: {"type": "number", "range": [-50, 50]} for name in _NUMBERS}
    categories = {name: {"type": "category"} for name in _CATEGORIES}
    contract = {"model": synthetic.MODEL, "task": "binary", "target": "y", "features": numbers | categories}
    return Contract.model_validate(contract), pl.DataFrame(columns)


def _request(port: int, row: dict[str, Any], key: str) -> bytes:
    body = json.dumps({"rows": [row]}).encode()
    head = f"POST /predict HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\nauthorization: Bearer {key}\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def main() -> int:
    contract, rows = _problem()
    bundle = synthetic.build(contract, rows, max_iter=100)
    row = bundle.json("golden.json")["rows"][0]
    with tempfile.TemporaryDirectory() as folder:
        here = service.environment(Path(folder))
        with service.Service(here, synthetic.MODEL, segment_seconds=10, poll_seconds=2) as ours:
            promotion.release(here.model(synthetic.MODEL), synthetic.publish(here, bundle), "benchmark")
            ours.serves(1)
            assert ours.process
            program, port = Path(folder, "bare.py"), free_port(28080)
            fields = [f"{name}: float = Field(ge=-50, le=50)" for name in _NUMBERS] + [
                f"{name}: str = Field(max_length=200)" for name in _CATEGORIES
            ]
            program.write_text(_BARE.format(fields="\n    ".join(fields)))
            bare = subprocess.Popen([sys.executable, str(program), str(port)])
            try:
                ours.until(lambda: ours.http.get(f"http://127.0.0.1:{port}/docs").status_code == 200)
                contenders = {"ours": (ours.port, ours.process.pid), "bare": (port, bare.pid)}
                found: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
                for number in range(_ROUNDS + 1):
                    for name, (at, pid) in contenders.items():
                        measured = _round(at, pid, _request(at, row, ours.key))
                        if number:  # the first round warms up
                            found[name].append(measured)
                dropped = ours.metric("mlops_log_dropped_rows_total")
            finally:
                bare.terminate()
                bare.wait()
    ratios = [a[0] / b[0] for a, b in zip(found["ours"], found["bare"], strict=True)]
    for name, title in (("ours", "the app, everything on"), ("bare", "FastAPI doing nothing")):
        rates, cpus = zip(*found[name], strict=True)
        print(f"{title:<24}{statistics.median(rates):8.0f} requests/s {statistics.median(cpus):7.0f} µs CPU a request")
    ratio = statistics.median(ratios)
    print(
        f"ratio {ratio:.2f} (of {_ROUNDS} rounds {min(ratios):.2f} to {max(ratios):.2f}), expected ≥ {_EXPECTED}; {dropped:.0f} log rows dropped"
    )
    return 0 if ratio >= _EXPECTED else 1


if __name__ == "__main__":
    sys.exit(main())
