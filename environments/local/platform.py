"""The embedded environment: MLflow and the app as processes of this machine, over one folder."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
from rich.console import Console

from mlops import access, door, releases
from mlops.environment import ROOT, Environment
from mlops.errors import Fault

_START_SECONDS = 180
_LOAD_SECONDS = 30
_STOP_SECONDS = 20
console = Console()


def free_port(wanted: int) -> int:
    for port in range(wanted, wanted + 200):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise Fault("port", wanted, "neither it nor the 200 after it are free")


class Platform:
    """Start, watch and stop the processes. One at a time for each home folder."""

    def __init__(self, environment: Environment, model: str, replicas: int = 1):
        self.home, self.model, self.bucket = environment.home, model, environment.bucket
        self.logs = self.home / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self._lock = (self.home / "platform.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Fault(
                "home", str(self.home), "a platform runs there already; stop it (Ctrl-C), or set MLOPS_HOME to another folder"
            ) from None
        self._running = self.home / "running.json"
        self._stop_leftovers()
        self.environment = Environment.load(environment.name)
        self.ports = [free_port(8080)]
        while len(self.ports) < replicas:
            self.ports.append(free_port(self.ports[-1] + 1))
        self.tracking_port = free_port(5001)
        self.controller_port = free_port(9100)
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Platform:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self._make_keys()
        for name in self._commands():
            self._spawn(name)
        self.environment = Environment.load(self.environment.name)
        for position, port in enumerate(self.ports):
            self.wait(f"app-{position}", f"http://127.0.0.1:{port}/healthz")

    def wait_for_tracking(self) -> None:
        self.wait("mlflow", f"{self.environment.tracking}/health")

    def wait_for_model(self) -> None:
        for position, port in enumerate(self.ports):
            self.wait(f"app-{position}", f"http://127.0.0.1:{port}/readyz", lambda answer: not answer.json()["reason"], _LOAD_SECONDS)

    def wait(
        self,
        name: str,
        url: str,
        good: Callable[[httpx.Response], bool] = lambda answer: answer.status_code == 200,
        seconds: float = _START_SECONDS,
    ) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._children[name].poll() is not None:
                raise Fault(name, f"exit code {self._children[name].returncode}", f"ended while starting; see {self.log(name)}")
            with contextlib.suppress(httpx.HTTPError):
                if good(httpx.get(url, timeout=2)):
                    return
            time.sleep(0.1)
        raise Fault(name, url, f"does not answer as it should after {seconds:g} s; see {self.log(name)}")

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def watch(self) -> None:
        """Until a signal comes: start again what ended."""
        while True:
            time.sleep(1)
            for name, child in list(self._children.items()):
                if child.poll() is not None:
                    console.print(f"{name} ended with {child.returncode}, starting it again; see {self.log(name)}")
                    _signal(child.pid, signal.SIGKILL)  # its own children would hold the port
                    self._spawn(name)

    def stop(self) -> None:
        for child in self._children.values():
            _signal(child.pid, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_SECONDS
        for child in self._children.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.1, deadline - time.monotonic()))
            _signal(child.pid, signal.SIGKILL)
            child.wait()
        self._running.unlink(missing_ok=True)
        self._lock.close()

    def _spawn(self, name: str) -> None:
        command, extra = self._commands()[name]
        with self.log(name).open("ab") as log:
            # Its own process group: Ctrl-C reaches us alone, and we stop the children in order.
            self._children[name] = subprocess.Popen(
                command, cwd=ROOT, env=os.environ | extra, stdout=log, stderr=log, start_new_session=True
            )
        # After each start, so that a successor finds whatever runs when we are killed.
        temporary = self._running.with_suffix(".new")
        temporary.write_text(json.dumps({
            "endpoint": f"http://127.0.0.1:{self.ports[0]}", "tracking": f"http://127.0.0.1:{self.tracking_port}",
            "pids": {name: child.pid for name, child in self._children.items()},
        }))  # fmt: skip
        temporary.replace(self._running)

    def _commands(self) -> dict[str, tuple[list[str], dict[str, str]]]:
        artifacts = f"{self.bucket}/mlflow"
        mlflow = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.tracking_port), "--workers", "1"]
        mlflow += ["--backend-store-uri", f"sqlite:///{self.home}/mlflow.db", "--artifacts-destination", artifacts]
        # Its job runner is for language models: eight more processes, none of use here.
        commands = {"mlflow": (mlflow, {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"})}
        watching = {"MLOPS_MODEL": self.model, "MLOPS_CONTROLLER_PORT": str(self.controller_port), "MLOPS_HOST": "127.0.0.1"}
        commands["controller"] = ([sys.executable, "-m", "monitoring.controller"], watching | {"MLOPS_HOME": str(self.home)})
        for position, port in enumerate(self.ports):
            settings = {
                "ENV": self.environment.name,
                "MODEL": self.model,
                "BUCKET": self.bucket,
                "KEYRING": self.environment.keyring,
                "PORT": port,
                "REPLICA": f"app-{position}",
                "SPOOL": self.home / "spool" / str(position),
            }
            commands[f"app-{position}"] = ([sys.executable, "-m", "app"], {f"MLOPS_{k}": str(v) for k, v in settings.items()})
        return commands

    def _make_keys(self) -> None:
        """What is missing; nothing that exists changes."""
        keyring = self.environment.keys
        roles = {(key.role, key.environment) for key in keyring.all() if key.state == "active"}
        for role, scope in (("build", None), ("approve", self.environment.name)):
            if (role, scope) not in roles:
                keyring.new(role, scope)
        kept = self.home / "keys" / "client.key"
        if not kept.exists():
            _, secret = access.new(self.environment.store, "client", ["predict", "outcomes"], per_second=100_000)
            with open(os.open(kept, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secret)

    def _stop_leftovers(self) -> None:
        """Children of a predecessor that was killed: we hold its lock, so nobody else looks after them."""
        if self._running.exists():
            for pid in json.loads(self._running.read_text()).get("pids", {}).values():
                shown = subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True).stdout
                if "-m mlflow" in shown or "-m app" in shown or "-m monitoring" in shown:
                    _signal(pid, signal.SIGKILL)
            self._running.unlink()


def _signal(group: int, how: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: what is left of it are zombies
        os.killpg(group, how)


def curl(environment: Environment, model: str) -> str:
    """A request that works, with the caller's own key."""
    current = door.champion(environment, model)
    if current is None:
        return f"curl {environment.endpoint}/readyz"
    row = current.json("golden.json")["rows"][0]
    key = (environment.home / "keys" / "client.key").read_text()
    return f"curl -s {environment.endpoint}/predict -H 'Authorization: Bearer {key}' -d {shlex.quote(json.dumps({'rows': [row]}))}"


def serve(environment: Environment, model: str, replicas: int, train: bool) -> None:
    ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def end(*_: object) -> None:
        for each in ends:  # the first is enough, another would cut the stop short
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    for each in ends:
        signal.signal(each, end)
    with contextlib.suppress(KeyboardInterrupt), Platform(environment, model, replicas) as platform:
        platform.wait_for_tracking()
        here = platform.environment
        if train and not releases.read(here.store, model):
            console.print("no model yet: training and releasing the first one")
            train_and_release(platform)
        try:
            if releases.read(here.store, model):
                platform.wait_for_model()
            request = curl(here, model)
        except Fault as fault:  # what is released does not serve: that is mended with the platform running
            request = str(fault)
        console.print(f"predictions  {here.endpoint}/docs", *(f"http://127.0.0.1:{port}" for port in platform.ports[1:]))
        console.print(f"metrics      {here.endpoint}/metrics\nMLflow       {here.tracking}\nlogs         {platform.logs}\n")
        print(request, "\n\nCtrl-C ends it; the data stays in", here.home, flush=True)
        platform.watch()
    console.print("stopped")


def train_and_release(platform: Platform) -> None:
    log = platform.log("train")
    with log.open("ab") as file:
        mlops = [sys.executable, "-m", "mlops.cli", "--model", platform.model]
        trained = subprocess.run([*mlops, "train", "--json"], cwd=ROOT, stdout=subprocess.PIPE, stderr=file)
        file.write(trained.stdout)
        if trained.returncode:
            raise Fault("train", f"exit code {trained.returncode}", f"the first model did not pass; see {log}, then: mlops train")
        digest = json.loads(trained.stdout.splitlines()[-1])["digest"]
        released = subprocess.run([*mlops, "release", digest, "--why", "first model"], cwd=ROOT, stdout=file, stderr=file)
        if released.returncode:
            raise Fault("release", f"exit code {released.returncode}", f"the first model was not released; see {log}, then: mlops release")
