"""Where a build is deployed to: a cluster, by Pulumi and by its images; or this machine, by its wheel."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx

from cli.cluster import Cluster
from cli.delivery import locks
from cli.delivery.builds import Build
from cli.delivery.git import worktree
from cli.delivery.pulumi import pulumi
from cli.delivery.road import Road
from infra.images import TARGETS
from mlops.client import http
from mlops.environment import ROOT, Environment
from mlops.errors import UserError
from mlops.processes import exists

_SECONDS = 300


class Target(ABC):
    @abstractmethod
    def up(self, build: Build, say: Callable[[str], None]) -> None: ...

    @abstractmethod
    def raw(self, *words: str, data: bytes | None = None) -> bytes:
        """What an `mlops` command on it prints."""

    def mlops(self, *words: str, data: bytes | None = None) -> dict[str, Any]:
        said = self.raw("--json", *words, data=data).splitlines()
        try:
            found: dict[str, Any] = json.loads(said[-1])
        except (ValueError, IndexError):
            raise UserError(words[0], "no answer", "ended without one; what it said is above") from None
        if error := found.get("error"):
            raise UserError(error["key"], error["value"], error["hint"])
        return found


def target(road: Road, environment: str) -> Target:
    cluster = Cluster.of(environment)
    return OnCluster(road, cluster) if cluster else OnMachine(road, environment)


class OnCluster(Target):
    """Pulumi's programs are those of the build's commit: what production gets is what staging got."""

    def __init__(self, road: Road, cluster: Cluster):
        self._road, self._cluster = road, cluster

    def up(self, build: Build, say: Callable[[str], None]) -> None:
        if missing := [name for name in TARGETS if name not in build.artifacts]:
            raise UserError(
                "build", build.short, f"has no image {missing[0]}: set registry in environments/delivery.yaml"
            )
        self.run(self._cluster.name, build, say)
        self._cluster.ask("rollout", "status", "deploy/serving", f"--timeout={_SECONDS}s")

    def run(self, stack: str, build: Build, say: Callable[[str], None]) -> None:
        folder = worktree(build.commit)
        build.release(self._cluster.name, folder)
        locks.recover(self._road, stack, folder, say)
        lease = locks.Lease(self._road, self._cluster.name)
        lease.begin()
        done = pulumi(stack, "up", "--yes", "--non-interactive", folder=folder, quiet=False)
        if done.returncode >= 0:
            lease.end()
        if done.returncode:
            raise UserError("pulumi up", stack, f"ended with {done.returncode}; what it said is above")

    def raw(self, *words: str, data: bytes | None = None) -> bytes:
        return _run(self._cluster.name, ROOT, {}, *words, data=data)


class OnMachine(Target):
    """The platform of `environments/<name>/environment.yaml`, as processes of this machine that outlive the deployment."""

    def __init__(self, road: Road, environment: str):
        self._road, self._name = road, environment
        self._environment = Environment.load(environment)
        self._home = self._environment.home
        self._state = self._home / "deployed.json"

    def up(self, build: Build, say: Callable[[str], None]) -> None:
        folder = self._unpacked(build)
        self._stop()
        leftover = self._running()
        say(f"start {build.short}")
        log = (self._home / "platform.log").open("ab")
        process = subprocess.Popen(
            [sys.executable, "-m", "cli", "--env", self._name, "run", "--no-train"],
            cwd=folder, env=os.environ | self._variables(folder), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        self._state.write_text(json.dumps({"pid": process.pid, "folder": str(folder)}), "utf-8")
        deadline = time.monotonic() + _SECONDS
        while self._running() == leftover or not self._answers():
            if process.poll() is not None or time.monotonic() > deadline:
                said = Path(log.name).read_text("utf-8", "replace").strip()[-300:]
                raise UserError(self._name, build.short, f"does not start; see {log.name}: {said}")
            time.sleep(0.2)

    def raw(self, *words: str, data: bytes | None = None) -> bytes:
        folder = Path(json.loads(self._state.read_text("utf-8"))["folder"]) if self._state.exists() else ROOT
        return _run(self._name, folder, self._variables(folder), *words, data=data)

    def _running(self) -> dict[str, Any]:
        """What the platform says of itself; one that was killed may have left it behind."""
        with contextlib.suppress(OSError, ValueError):
            return json.loads((self._home / "running.json").read_text("utf-8"))
        return {}

    def _answers(self) -> bool:
        running = self._running()
        with contextlib.suppress(httpx.HTTPError):
            return "app" in running.get("pids", {}) and http(running["endpoint"], timeout=2).get("/healthz").is_success
        return False

    def _variables(self, folder: Path) -> dict[str, str]:
        environment = self._environment
        known = {"HOME": environment.home, "BUCKET": environment.bucket, "KEYRING": environment.keyring}
        return {f"MLOPS_{key}": str(value) for key, value in known.items()} | {"PYTHONPATH": str(folder)}

    def _unpacked(self, build: Build) -> Path:
        if "wheel" not in build.artifacts:
            raise UserError("build", build.short, "has no wheel")
        digest = build.artifacts["wheel"].removeprefix("sha256:")
        folder = self._home / "builds" / digest[:16]
        data = self._road.bucket.get(f"wheels/{digest}.whl") or b""
        if hashlib.sha256(data).hexdigest() != digest:
            raise UserError("wheel", digest[:12], f"is not what {self._road.store} has")
        with zipfile.ZipFile(BytesIO(data)) as archive:
            archive.extractall(folder)
        return folder

    def _stop(self) -> None:
        if not self._state.exists():
            return
        pid = json.loads(self._state.read_text("utf-8"))["pid"]
        shown = subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True).stdout
        if f"--env {self._name} run" in shown:
            os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + 60
            while _alive(pid) and time.monotonic() < deadline:
                time.sleep(0.1)
        self._state.unlink()


def _alive(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    return exists(pid)


def _run(environment: str, folder: Path, variables: dict[str, str], *words: str, data: bytes | None = None) -> bytes:
    command = [sys.executable, "-m", "cli", "--env", environment, *words]
    return subprocess.run(command, cwd=folder, env=os.environ | variables, input=data, stdout=subprocess.PIPE).stdout
