"""The status page is read in a browser at 1280 and at 400 pixels, without an error and without scrolling sideways, and
answers within 300 ms beside a log of ten million rows.

The first needs Chromium on the PATH (Debian: chromium).
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from prometheus_client import CollectorRegistry

from environments.local.platform import free_port
from mlops import access, rollout
from mlops.attestations import attest
from mlops.environment import ROOT, Environment
from monitoring.page import Site
from tests import synthetic, watched
from tests.service import environment

ROWS, DAYS, WATCHED_SECONDS = 10_000_000, 60, 60
SIZES = {1280: 900, 400: 800}
FIRST_BYTE_SECONDS = 0.3


class Browser:
    """A page of a headless Chromium, by its DevTools protocol over two pipes."""

    def __init__(self, folder: Path):
        (down, self._out), (self._in, up) = os.pipe(), os.pipe()
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder}"]
        # The protocol's pipes are 3 and 4.
        shell = f'exec chromium "$@" 3<&{down} 4>&{up}'
        command = ["bash", "-c", shell, "chromium", *options, "--remote-debugging-pipe"]
        with (folder / "chromium.log").open("wb") as log:
            self._process = subprocess.Popen(command, pass_fds=(down, up), stdout=log, stderr=log)
        os.close(down)
        os.close(up)
        self._read, self._asked, self._session = b"", 0, ""
        self.errors: list[str] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Log", "Runtime", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        self._asked += 1
        call = {"id": self._asked, "method": method, "params": params}
        os.write(self._out, json.dumps(call | ({"sessionId": self._session} if self._session else {})).encode() + b"\0")
        return self._until(lambda said: said.get("id") == self._asked)["result"]

    def open(self, url: str, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        self.ask("Page.navigate", url=url)
        self._until(lambda said: said.get("method") == "Page.loadEventFired")

    def evaluate(self, expression: str) -> Any:
        return self.ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def screenshot(self, file: Path, whole: bool = False) -> None:
        image = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        file.write_bytes(base64.b64decode(image))

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        os.close(self._out)
        os.close(self._in)

    def _until(self, found: Any) -> dict[str, Any]:
        while True:
            while b"\0" not in self._read:
                more = os.read(self._in, 1 << 20)
                if not more:
                    raise RuntimeError("Chromium has ended")
                self._read += more
            raw, _, self._read = self._read.partition(b"\0")
            said = json.loads(raw)
            if said.get("method") == "Log.entryAdded" and said["params"]["entry"]["level"] == "error":
                self.errors.append(said["params"]["entry"]["text"])
            if said.get("method") in ("Runtime.exceptionThrown", "Network.loadingFailed"):
                self.errors.append(json.dumps(said["params"])[:200])
            if found(said):
                return said


@contextmanager
def browser(folder: Path) -> Generator[Browser]:
    folder.mkdir(parents=True)
    opened = Browser(folder)
    try:
        yield opened
    finally:
        opened.close()
        shutil.rmtree(folder, ignore_errors=True)


def shown(made: Environment, state: str, chromium: Browser, pictures: Path) -> dict[str, Any]:
    """What is wrong with the page of that state: errors in the console, and pixels beyond its width."""
    model = made.model(watched.NAME)
    site = Site(model, CollectorRegistry(), lambda: None)
    site.snapshot = watched.snapshot(made, state)
    _, key = access.new(made.store, "reader", ["status"], 1000)
    site.keys.replace(access.read(made.store))
    server = site.serve("127.0.0.1", port := free_port(29700))
    url, beyond = f"http://reader:{key}@127.0.0.1:{port}/", {}
    for width, height in SIZES.items():
        chromium.open(url, width, height)
        beyond[str(width)] = chromium.evaluate("document.documentElement.scrollWidth") - width
        if width == max(SIZES):
            chromium.screenshot(pictures / f"status-{state}.png")
    for link in chromium.evaluate(
        "[...document.links].map(each => each.pathname).filter(each => each.endsWith('.html'))"
    ):
        chromium.open(f"{url.rstrip('/')}{link}", 1280, 900)
    chromium.open("about:blank", 1280, 900)
    server.should_exit = True
    errors, chromium.errors = chromium.errors, []
    return {"errors": errors, "pixels_beyond": beyond}


def long_log(made: Environment) -> int:
    """Sixty days of a canary, compacted, each row with its outcome; returns how many rows."""
    champion, challenger = (synthetic.publish(made, synthetic.build(seed=seed)) for seed in (1, 2))
    model, today = made.model(synthetic.MODEL), datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    start = today - timedelta(days=DAYS)
    about: dict[str, Any] = {
        "mode": "canary",
        "weight": 0.5,
        "challenger": challenger,
        "rollout": "0f0f0f0f",
        "paused": True,
    }
    attest(model, "approved", champion, environment=made.name)
    release = rollout.write(model, champion, "a long one", at=start, **about)
    n, random = ROWS // (24 * DAYS) + 1, np.random.default_rng(0)
    frame = synthetic.frame(days=1, rows_a_day=n).rename(lambda name: f"feature.{name}")
    kept = frame.select(f"feature.{name}" for name in ("size", "heat", "color", "region", "member"))
    score, arm = random.random(n), random.integers(0, 2, n)
    for hour in (start + timedelta(hours=i) for i in range(24 * DAYS)):
        millis, at = int(hour.timestamp() * 1000), hour.timestamp() + np.sort(random.random(n)) * 3600
        ids = [f"{millis >> 16:08x}-{millis & 0xFFFF:04x}-7{i >> 12:03x}-8{i & 0xFFF:03x}-{i:012x}" for i in range(n)]
        common: dict[str, Any] = {"id": ids, "at": at, "revision": release.revision, "prediction": np.round(score)}
        common |= {"model_version": pl.Series(np.where(arm, challenger, champion)), "score": score, "arm": arm}
        common |= {"champion_score": score, "challenger_score": score, "challenger_seconds": 0.001}
        rows = pl.DataFrame(common | {"entity": [f"c{i % 5000}" for i in range(n)]}).with_columns(kept)
        rows = rows.with_columns(
            event=pl.lit(None, pl.Float64), fault=pl.lit(None, pl.String), caller=pl.lit(None, pl.String)
        )
        truth = (random.random(n) < score).astype(float)
        known = pl.DataFrame({"id": ids, "value": truth, "at": at})
        for kind, table, revision in (("predictions", rows, release.revision), ("outcomes", known, 0)):
            content = BytesIO()
            table.write_parquet(content, compression="zstd", compression_level=1)
            key = f"{kind}/{synthetic.MODEL}/{hour:%Y-%m-%d/%H}/{revision:08d}-0.parquet"
            made.store.put(key, content.getvalue())
    return n * 24 * DAYS


def first_byte(port: int, key: str) -> tuple[float, str]:
    """Seconds from the connection's first packet to the answer's, and the page; '' if it is not there yet."""
    started, connection = time.perf_counter(), HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/", headers={"authorization": f"Bearer {key}"})
    answer = connection.getresponse()
    seconds = time.perf_counter() - started
    text = answer.read().decode()
    return seconds, text if answer.status == 200 else ""


def waited(made: Environment, rows: int) -> dict[str, Any]:
    """For the first byte of the page, from a controller that reads the whole log and then watches it."""
    _, key = access.new(made.store, "reader", ["status"], 1000)
    told = {name: getattr(made, name) for name in ("bucket", "keyring", "home", "endpoint", "tracking")}
    told |= {"model": synthetic.MODEL, "host": "127.0.0.1", "controller_port": (port := free_port(29800))}
    variables = os.environ | {f"MLOPS_{name.upper()}": str(value) for name, value in told.items()}
    waits, done, started = list[float](), 0.0, time.monotonic()
    with (made.home / "controller.log").open("wb") as log:
        command = [sys.executable, "-m", "monitoring.controller"]
        process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=log, stderr=log)
    while not done or time.monotonic() < done + WATCHED_SECONDS:
        assert process.poll() is None
        assert time.monotonic() < started + 1200, "the log was not read"
        try:
            seconds, text = first_byte(port, key)
        except OSError:  # it has not bound its port yet
            seconds, text = 0.0, ""
        if text:
            waits.append(seconds)
        if not done and f"{rows:,} rows scored by both" in text and "Not analysed yet" not in text:
            done = time.monotonic()
        time.sleep(0.1)
    peak = max_memory(process.pid)
    process.terminate()
    process.wait()
    waits.sort()
    return {
        "rows": rows, "requests": len(waits), "read_after_seconds": round(done - started),
        "median_seconds": round(waits[len(waits) // 2], 4), "p99_seconds": round(waits[int(0.99 * len(waits))], 4),
        "worst_seconds": round(waits[-1], 4), "page_bytes": len(text.encode()), "peak_memory_mb": peak,
    }  # fmt: skip


def max_memory(pid: int) -> int:
    """In MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def prove(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"first_byte": waited(made := environment(folder / "long"), long_log(made))}
    holds, reason = found["first_byte"]["worst_seconds"] <= FIRST_BYTE_SECONDS, "it answers too late"
    if shutil.which("chromium") is None:
        return found | {"holds": False, "reason": "no chromium on the PATH: nobody has looked at it"}
    with browser(folder / "browser") as chromium:
        found["states"] = {
            state: shown(environment(folder / state), state, chromium, folder) for state in watched.STATES
        }
    for state, seen in found["states"].items():
        if seen["errors"] or any(pixels > 0 for pixels in seen["pixels_beyond"].values()):
            holds, reason = False, f"the page of the state {state!r} has errors, or is too wide"
    return found | {"holds": holds} | ({} if holds else {"reason": reason})
