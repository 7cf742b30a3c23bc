from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from app.settings import Settings
from environments.local.platform import free_port
from mlops import access
from mlops.environment import ROOT, Environment

BODY = Settings.model_fields["max_body_bytes"].default  # bytes, the largest
LOG_SECRET = "of all environments of the tests, 32 characters"


class Service:
    """The real app in a process of its own, over an environment's bucket; polls and writes fast, for tests."""

    def __init__(self, environment: Environment, model: str, **settings: Any):
        self.environment, self.model = environment, model
        self.spool = environment.home / "spool"
        self.log = environment.home / "app.log"
        self.port = free_port(18080 + os.getpid() % 997 * 10)
        self.url = f"http://127.0.0.1:{self.port}"
        _, self.key = access.new(environment.store, "test", ["predict", "outcomes"], per_second=1e6)
        self.http = httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {self.key}"}, timeout=10)
        told = {
            "env": environment.name, "model": model, "bucket": environment.bucket, "keyring": environment.keyring,
            "spool": self.spool, "log_key": environment.log_key, "port": self.port, "poll_seconds": 0.2, "segment_seconds": 0.5,
        }  # fmt: skip
        self._settings = {f"MLOPS_{name.upper()}": str(value) for name, value in (told | settings).items()}
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Service:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.http.close()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "app"], cwd=ROOT, env=os.environ | self._settings, stdout=log, stderr=log
            )
        self.until(lambda: self.http.get("/healthz").status_code == 200)

    def stop(self, how: int = signal.SIGTERM) -> None:
        if self.process and self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(30)

    def predict(self, *rows: dict[str, Any]) -> dict[str, Any]:
        answer = self.http.post("/predict", json={"rows": list(rows)})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the series of that name that carry these labels."""
        total = 0.0
        for line in self.http.get("/metrics").text.splitlines():
            series, _, value = line.rpartition(" ")
            if series.partition("{")[0] == name and all(f'{k}="{v}"' in series for k, v in labels.items()):
                total += float(value)
        return total

    def serves(self, revision: int, timeout: float = 20) -> None:
        self.until(lambda: self.metric("mlops_release_revision", state="serving") == revision, timeout)

    def until(self, condition: Callable[[], bool], timeout: float = 20) -> None:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            try:
                if condition():
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"not within {timeout} s; the app's log ends with\n{self.log.read_text()[-2000:]}")


def environment(home: Path, bucket: str | None = None) -> Environment:
    """A fresh environment below `home`, with signing keys."""
    made = Environment(
        name="local",
        home=home,
        bucket=bucket or str(home / "bucket"),
        keyring=home / "keys" / "keyring.json",
        endpoint="http://127.0.0.1:1",
        tracking="http://127.0.0.1:1",
    )
    made.keys.new("build")
    made.keys.new("approve", "local")
    (made.keyring.parent / "log.key").write_text(LOG_SECRET)
    return made
