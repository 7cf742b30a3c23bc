"""`mlops run` as a person has it: one story over three starts, since each takes the time MLflow takes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import psutil
import pytest

from environments.local.platform import Platform, claim_port, free_port
from mlops import access
from mlops.environment import ROOT, Environment
from mlops.keys import Keyring
from mlops.releases import ReleaseLog
from mlops.store import Store
from tests import synthetic
from tests.bucket_map import in_bucket_map


class Run:
    """One `mlops run`."""

    def __init__(self, home: Path, models: Path):
        home.mkdir(exist_ok=True)
        self.home, self.output = home, home / f"output-{len(list(home.glob('output-*')))}"
        told = {"MLOPS_HOME": str(home), "MLOPS_MODELS": str(models), "PYTHONUNBUFFERED": "1", "COLUMNS": "300"}
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cli", "run"], cwd=ROOT, env=os.environ | told, stdout=output, stderr=output
            )
        self.seen: dict[int, psutil.Process] = {}

    @property
    def text(self) -> str:
        return self.output.read_text()

    @property
    def running(self) -> dict[str, Any]:
        return json.loads((self.home / "running.json").read_text())

    def up(self) -> Run:
        until(lambda: "Ctrl-C ends it" in self.text or self.process.poll() is not None, self, 900)
        assert self.process.poll() is None, self.text
        return self

    def curl(self) -> dict[str, Any]:
        (line,) = re.findall(r"^curl .*$", self.text, re.MULTILINE)
        answer = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True).stdout
        return json.loads(answer)

    def processes(self) -> list[psutil.Process]:
        """Everything that it has started and that lives, whoever is the parent now."""
        for started in psutil.process_iter():
            try:
                if started.environ().get("MLOPS_HOME") == str(self.home):
                    self.seen[started.pid] = started
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        return [one for one in self.seen.values() if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]

    def group(self, leader: int) -> list[psutil.Process]:
        """Those of them that `leader` has started, or itself."""
        found = []
        for one in self.processes():
            with suppress(ProcessLookupError):
                if os.getpgid(one.pid) == leader:
                    found.append(one)
        return found

    def end(self, how: int) -> int:
        self.process.send_signal(how)
        return self.process.wait(40)


def until(condition: Callable[[], bool], run: Run, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.1)
    logs = "".join(f"\n--- {log.name}\n{log.read_text()[-1500:]}" for log in sorted((run.home / "logs").glob("*.log")))
    raise AssertionError(f"not within {seconds} s\n{run.text}{logs}")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    home = tmp_path / "a home %2F #1?"  # as people have them
    yield home
    for process in psutil.process_iter():
        try:
            if process.environ().get("MLOPS_HOME") == str(home):
                process.kill()
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue


@pytest.mark.timeout(1800)
def test_the_platform_from_the_first_start_to_the_last(home: Path, tmp_path: Path) -> None:
    made = synthetic.write_model(tmp_path / "models", synthetic.frame())
    (made.folder / "parameters.yaml").write_text("estimator: linear\n")
    wanted = free_port(8080)
    with socket.create_server(("127.0.0.1", wanted)):
        first = Run(home, tmp_path / "models").up()
    assert f":{first.running['endpoint'].rsplit(':', 1)[1]}" in first.text
    assert first.running["endpoint"] != f"http://127.0.0.1:{wanted}", "a busy port is passed over"
    log = ReleaseLog(Store(str(home / "bucket")), synthetic.MODEL, Keyring(home / "keys" / "keyring.json"), "local")
    (released,) = log.read()
    answer = first.curl()
    assert (answer["model_version"], answer["revision"]) == (released.champion, 1)
    (page,) = re.findall(r"^status +(http://client:\S+/)$", first.text, re.MULTILINE)
    until(lambda: f"Serves <code>{released.champion[:12]}</code>" in httpx.get(page, timeout=10).text, first)

    second = Run(home, tmp_path / "models")
    assert second.process.wait(30) == 2
    assert "a platform is running there already" in second.text
    assert "Traceback" not in second.text
    assert httpx.get(f"{first.running['endpoint']}/healthz").status_code == 200

    first.processes()
    for name in ("app", "mlflow"):
        before = first.running["pids"][name]
        os.kill(before, signal.SIGKILL)
        until(lambda name=name, before=before: first.running["pids"][name] != before, first)
        assert f"{name} ended with -9, restarting it" in first.text
        # Nobody holds its port; a killed process takes a moment to go.
        until(lambda before=before: not first.group(before), first)
    until(lambda: answers(f"{first.running['endpoint']}/readyz"), first)

    children = first.processes()
    assert {first.process.pid, *first.running["pids"].values()} <= {child.pid for child in children}
    first.process.kill()
    first.process.wait()
    orphans = first.processes()
    assert set(first.running["pids"].values()) <= {orphan.pid for orphan in orphans}, "nobody has told them"
    third = Run(home, tmp_path / "models").up()
    assert not [one for one in orphans if one.is_running()], "what a predecessor left behind is ended"
    assert third.curl()["model_version"] == released.champion
    assert log.read() == [released]
    assert "training" not in third.text, "it goes on from the same data"
    third.processes()
    assert third.end(signal.SIGTERM) == 0
    assert not third.processes(), "no process is left"
    assert [key for key in Store(str(home / "bucket")).keys("") if not in_bucket_map(key)] == []
    assert not (home / "running.json").exists()
    assert "stopped" in third.text


@pytest.mark.timeout(1200)
def test_a_first_model_that_is_refused_leaves_the_platform_up_and_says_why(home: Path, tmp_path: Path) -> None:
    made = synthetic.write_model(tmp_path / "models", synthetic.frame().with_columns(pl.col("y").shuffle(seed=1)))
    (made.folder / "parameters.yaml").write_text("estimator: linear\n")
    run = Run(home, tmp_path / "models").up()
    assert re.search(
        r"no model is released yet: gate is .*floor:.*\n.*The platform stays up.*mlops --model synthetic train",
        run.text,
        re.DOTALL,
    )
    assert answers(f"{run.running['endpoint']}/readyz")
    assert answers(f"{run.running['tracking']}/health")
    assert run.end(signal.SIGINT) == 0


def test_ctrl_c_while_it_starts_leaves_nothing_behind(home: Path, tmp_path: Path) -> None:
    synthetic.write_model(tmp_path / "models", synthetic.frame(days=10))
    run = Run(home, tmp_path / "models")
    until(lambda: (home / "running.json").exists() and "app" in run.running["pids"], run)
    assert len(run.processes()) >= 3
    run.process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    assert run.end(signal.SIGINT) == 0, f"the impatient are served too: {run.text}"
    assert not run.processes()
    assert not (home / "running.json").exists()


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def test_the_clients_key_follows_to_another_bucket(tmp_path: Path) -> None:
    here = Environment(
        name="local",
        home=tmp_path,
        bucket=str(tmp_path / "bucket"),
        keyring=tmp_path / "keys" / "keyring.json",
        endpoint="",
        tracking="",
    )
    platform = object.__new__(Platform)
    for bucket in ("one", "two", "two"):
        platform.home, platform.environment = tmp_path, here.model_copy(update={"bucket": str(tmp_path / bucket)})
        platform._make_keys()
        secret = (tmp_path / "keys" / "client.key").read_text()
        (key,) = access.read(platform.environment.store)
        assert (key.sha256, key.scopes) == (access.sha256(secret), ["predict", "outcomes", "status"])


def test_a_client_key_from_before_there_was_a_page_opens_it_too(tmp_path: Path) -> None:
    environment = Environment(
        name="local", home=tmp_path, bucket=str(tmp_path), keyring=tmp_path / "keys" / "keyring.json", endpoint="", tracking=""
    )  # fmt: skip
    _, secret = access.new(environment.store, "client", ["predict", "outcomes"], 100)
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "client.key").write_text(secret)
    platform = object.__new__(Platform)
    platform.home, platform.environment = tmp_path, environment
    platform._make_keys()
    assert (tmp_path / "keys" / "client.key").read_text() == secret
    assert [key.scopes for key in access.read(environment.store)] == [["predict", "outcomes", "status"]]


def test_two_platforms_never_share_a_port() -> None:
    wanted = free_port(25_000)
    first, lock = claim_port(wanted)
    second, other = claim_port(wanted)
    assert first != second
    for each in (lock, other):
        each.close()
    again, lock = claim_port(first)
    lock.close()
    assert again == first
