"""The embedded environment: MLflow, controller, approver and app as processes of this machine, over one folder."""

import contextlib
import fcntl
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self, TextIO

import httpx

from mlops import access
from mlops.client import http
from mlops.environment import ROOT, Environment
from mlops.errors import UserError
from mlops.terminal import Terminal

_START_SECONDS, _STOP_SECONDS = 300, 20
# Its job runner is for language models: eight more processes, none of use here.
_MLFLOW = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
console = Terminal()


def free_port(wanted: int) -> int:
    for port in range(wanted, wanted + 200):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise UserError("port", wanted, "neither it nor the next 200 are free")


def claim_port(wanted: int) -> tuple[int, TextIO]:
    """As `free_port`, and the lock that says so while it is open: MLflow binds its port long after it was found free."""
    for port in range(wanted, wanted + 200):
        with contextlib.suppress(OSError):
            lock = open(Path(tempfile.gettempdir(), f"mlops-port-{port}.lock"), "w", encoding="utf-8")  # noqa: SIM115
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if free_port(port) == port:
                return port, lock
    raise UserError("port", wanted, "neither it nor the next 200 are free")


class Platform:
    """Starts, watches and stops the processes. Only one at a time for each home folder."""

    def __init__(self, environment: Environment, model: str):
        self.home, self.model = environment.home, model
        self.logs = self.home / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self._lock = (self.home / "platform.lock").open("w", encoding="utf-8")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            hint = "a platform is running there already; stop it (Ctrl-C), or set MLOPS_HOME to another folder"
            raise UserError("home", str(self.home), hint) from None
        self._running = self.home / "running.json"
        self._stop_leftovers()
        self.environment = Environment.load(environment.name)
        wanted = {"app": 8080, "mlflow": 5001, "controller": 9100, "approver": 9101}
        self._claims = {name: claim_port(port) for name, port in wanted.items()}
        self._ports = {name: port for name, (port, _) in self._claims.items()}
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        try:
            self._make_keys()
            for name in self._commands():
                self._spawn(name)
            self.environment = Environment.load(self.environment.name)
            self.wait("app", f"{self.environment.endpoint}/healthz")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait_for_tracking(self) -> None:
        self.wait("mlflow", f"{self.environment.tracking}/health")

    def wait(
        self, name: str, url: str, good: Callable[[httpx.Response], bool] = lambda found: found.is_success
    ) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if (code := self._children[name].poll()) is not None:
                raise UserError(name, f"exit code {code}", f"ended while starting; see {self.log(name)}")
            with contextlib.suppress(httpx.HTTPError):
                if good(http(url, timeout=2).get(url)):
                    return
            time.sleep(0.1)
        raise UserError(name, url, f"is not ready after {_START_SECONDS} s; see {self.log(name)}")

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def watch(self) -> None:
        """Restart what ends, until a signal comes."""
        while True:
            time.sleep(1)
            for name, child in list(self._children.items()):
                if child.poll() is not None:
                    console.print(f"{name} ended with {child.returncode}, restarting it; see {self.log(name)}")
                    _signal(child.pid, signal.SIGKILL)  # its own children would keep the port
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
        for lock in (self._lock, *(claim for _, claim in self._claims.values())):
            lock.close()

    def _spawn(self, name: str) -> None:
        command, extra = self._commands()[name]
        with self.log(name).open("ab") as log:
            # Its own process group: Ctrl-C reaches this process alone, which stops the children in order.
            self._children[name] = subprocess.Popen(
                [sys.executable, "-m", *command], cwd=self.home if name == "mlflow" else ROOT,
                env=os.environ | extra, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        # After each start, so that a successor finds the children of a killed predecessor.
        temporary = self._running.with_suffix(".new")
        names = {"endpoint": "app", "tracking": "mlflow", "status": "controller"}
        running: dict[str, object] = {key: f"http://127.0.0.1:{self._ports[name]}" for key, name in names.items()}
        running["pids"] = {child: process.pid for child, process in self._children.items()}
        temporary.write_text(json.dumps(running), "utf-8")
        temporary.replace(self._running)

    def _commands(self) -> dict[str, tuple[list[str], dict[str, str]]]:
        """Name → (module and arguments, environment variables)."""
        environment, ports = self.environment, {name: str(port) for name, port in self._ports.items()}
        mlflow = ["mlflow", "server", "--host", "127.0.0.1", "--port", ports["mlflow"], "--workers", "1"]
        bucket = environment.bucket if "://" in environment.bucket else Path(environment.bucket).absolute().as_uri()
        # Relative, since a path may contain what means something in a URI.
        mlflow += ["--backend-store-uri", "sqlite:///mlflow.db", "--artifacts-destination", f"{bucket}/mlflow"]
        common = {"MODEL": self.model, "HOST": "127.0.0.1", "HOME": str(self.home)}
        controller = common | {"CONTROLLER_PORT": ports["controller"], "TRAINER": "local"}
        approver = common | {"CONTROLLER_PORT": ports["approver"]}
        app = {
            "ENV": environment.name, "MODEL": self.model, "BUCKET": environment.bucket, "KEYRING": environment.keyring,
            "PORT": ports["app"], "REPLICA": "app", "SPOOL": self.home / "spool", "LOG_KEY": environment.log_key,
        }  # fmt: skip
        return {
            "mlflow": (mlflow, _MLFLOW),
            "controller": (["monitoring.controller"], _variables(controller)),
            "approver": (["monitoring.approver"], _variables(approver)),
            "app": (["app"], _variables(app)),
        }

    def _make_keys(self) -> None:
        """What is missing; nothing that exists changes."""
        keyring = self.environment.keys
        roles = {(key.role, key.environment) for key in keyring.all() if key.state == "active"}
        for role, scope in (("build", None), ("approve", self.environment.name)):
            if (role, scope) not in roles:
                keyring.new(role, scope)
        folder = self.home / "keys"
        _keep(folder / "log.key", secrets.token_urlsafe(32))
        secret = _keep(folder / "client.key", access.new_secret())
        access.ensure(self.environment.store, "client", access.CLIENT, per_second=100_000, secret=secret)

    def _stop_leftovers(self) -> None:
        """Children of a killed predecessor: this process holds its lock, so nothing else stops them."""
        if self._running.exists():
            for pid in json.loads(self._running.read_text("utf-8")).get("pids", {}).values():
                command = ["ps", "-o", "command=", "-p", str(pid)]
                shown = subprocess.run(command, capture_output=True, text=True).stdout
                if any(module in shown for module in ("-m mlflow", "-m app", "-m monitoring")):
                    _signal(pid, signal.SIGKILL)
            self._running.unlink()


def _keep(file: Path, secret: str) -> str:
    """The secret that is in the file, which is this one if there is none."""
    if not file.exists():
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as target:
            target.write(secret)
    return file.read_text("utf-8").strip()


def _variables(settings: Mapping[str, object]) -> dict[str, str]:
    return {f"MLOPS_{key}": str(value) for key, value in settings.items()}


def _signal(group: int, how: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: only zombies are left of it
        os.killpg(group, how)
