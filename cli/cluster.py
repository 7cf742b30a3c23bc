"""An environment on a cluster: its commands run in the controller's pod, so kubectl is the only way in."""

from __future__ import annotations

import atexit
import base64
import contextlib
import json
import os
import re
import subprocess
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from mlops.environment import ROOT
from mlops.errors import UserError
from mlops.releases import author

_CONTROLLER = "deploy/controller"


@dataclass(frozen=True)
class Cluster:
    """`settings`: what Pulumi.yaml declares, as `environments/Pulumi.<name>.yaml` has it."""

    name: str
    settings: dict[str, Any]

    @classmethod
    def of(cls, name: str | None) -> Cluster | None:
        """None if the environment is this machine's own, or this is one of its pods."""
        name = name or os.environ.get("MLOPS_ENV", "local")
        file = ROOT / "environments" / f"Pulumi.{name}.yaml"
        if "MLOPS_BUCKET" in os.environ or not file.exists():
            return None
        defaults = {
            key: entry["default"] for key, entry in yaml.safe_load((ROOT / "Pulumi.yaml").read_text())["config"].items()
        }
        try:
            changed = dict(_paths(yaml.safe_load(file.read_text())["config"] or {}))
        except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
            raise UserError("env", str(file), f"cannot be read as settings: {str(error).splitlines()[0]}") from None
        return cls(name, defaults | changed)

    def kubectl(self, *words: str) -> list[str]:
        context = ["--context", self.settings["cluster.context"]] if self.settings["cluster.context"] else []
        return ["kubectl", *context, "-n", self.settings["namespace"], *words]

    def ask(self, *words: str, data: bytes | None = None) -> bytes:
        try:
            done = subprocess.run(self.kubectl(*words), input=data, capture_output=True)
        except FileNotFoundError:
            raise UserError("kubectl", "missing", "install it: clusters are reached through it") from None
        if done.returncode:
            raise UserError(
                f"kubectl {words[0]}", self.name, done.stderr.decode().strip()[-400:] or f"exit code {done.returncode}"
            )
        return done.stdout

    def get(self, kind: str, name: str) -> dict[str, Any]:
        return json.loads(self.ask("get", kind, name, "-o", "json"))

    def secret(self, name: str, key: str) -> str:
        return base64.b64decode(self.get("secret", name)["data"][key]).decode()

    def images(self) -> set[str]:
        """Images that the nodes have."""
        nodes = json.loads(self.ask("get", "nodes", "-o", "json"))["items"]
        return {
            name for node in nodes for image in node["status"].get("images", []) for name in image.get("names") or []
        }

    def run(self, words: Sequence[str], data: bytes | None = None) -> int:
        """An `mlops` command in the controller's pod; its output is ours, and its exit code is returned."""
        self._wait_for(_CONTROLLER)
        command = ["env", f"MLOPS_BY={author()}", "python", "-m", "cli", *words]
        return subprocess.run(self.kubectl("exec", "-i", _CONTROLLER, "--", *command), input=data).returncode

    def job(self, cron_job: str, changes: dict[str, Any] | None = None) -> str:
        """Make a Job from a CronJob's template, its container changed by `changes`; returns its name."""
        template = self.get("cronjob", cron_job)["spec"]["jobTemplate"]
        name = f"{cron_job}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
        template["spec"]["template"]["spec"]["containers"][0] |= changes or {}
        job = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": name, **template["metadata"]},
            "spec": template["spec"],
        }
        self.ask("create", "-f", "-", data=json.dumps(job).encode())
        return name

    def train(self, words: Sequence[str]) -> int:
        """A Job from the training's template; its log is followed to the end, its exit code returned."""
        self._wait_for("deploy/tracking")
        name = self.job("training", {"command": ["python", "-m", "cli"], "args": list(words)})
        subprocess.run(self.kubectl("logs", "-f", "--pod-running-timeout=2m", f"job/{name}"))
        while True:
            pods = json.loads(self.ask("get", "pods", "-l", f"job-name={name}", "-o", "json"))["items"]
            states = [status["state"] for pod in pods for status in pod["status"].get("containerStatuses", [])]
            if ended := states and states[-1].get("terminated"):
                return ended["exitCode"]
            if waiting := states and states[-1].get("waiting", {}).get("message"):
                raise UserError("job", name, f"did not start: {waiting}; see `kubectl describe job {name}`")
            time.sleep(1)

    def _wait_for(self, workload: str) -> None:
        """`pulumi up` does not wait for what is outside the request path."""
        self.ask("rollout", "status", workload, "--timeout=300s")

    def reach(self) -> None:
        """Let this process call the service: through a local port, with the client's key."""
        command = self.kubectl("port-forward", "svc/proxy", ":8080")
        forward = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        atexit.register(forward.kill)
        assert forward.stdout
        if not (port := re.search(r"127\.0\.0\.1:(\d+)", forward.stdout.readline())):
            raise UserError("cluster", self.name, f"no connection; try: {' '.join(command)}")
        os.environ.setdefault("MLOPS_API_KEY", self.secret("client-key", "client.key"))
        home = ROOT / ".mlops" / self.name
        known = {
            "ENV": self.name,
            "ENDPOINT": f"http://127.0.0.1:{port.group(1)}",
            "HOME": home,
            "BUCKET": home / "bucket",
        }
        os.environ |= {f"MLOPS_{key}": str(value) for key, value in known.items()} | {
            "MLOPS_KEYRING": "none",
            "MLOPS_TRACKING": "none",
        }

    @contextlib.contextmanager
    def keyring(self) -> Generator[None]:
        """The cluster's keyring as a local file while it is changed: whoever may write the cluster's Secrets decides which
        keys it trusts. A concurrent change is not overwritten."""
        found = self.get("configmap", "keyring")
        with TemporaryDirectory() as folder:
            path = Path(folder, "keyring.json")
            path.write_text(found["data"]["keyring.json"])
            os.environ |= {
                "MLOPS_ENV": self.name,
                "MLOPS_KEYRING": str(path),
                "MLOPS_ENDPOINT": "none",
                "MLOPS_TRACKING": "none",
            }
            os.environ |= {"MLOPS_BUCKET": f"{folder}/bucket", "MLOPS_HOME": folder}
            yield
            for private in path.parent.glob("*.pem"):
                role, text = private.stem.partition("-")[0], private.read_text()
                patch = json.dumps({"stringData": {private.name: text}})
                self.ask("patch", "secret", f"signing-{role}", "--patch-file", "/dev/stdin", data=patch.encode())
            found["data"]["keyring.json"] = path.read_text()
            self.ask("replace", "-f", "-", data=json.dumps(found).encode())


def _paths(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Settings by path, as Pulumi.yaml names them."""
    for key, value in config.items():
        name = key.removeprefix("mlops:")
        yield from (
            ((f"{name}.{inner}", each) for inner, each in value.items()) if isinstance(value, dict) else [(name, value)]
        )


def without(words: Sequence[str], option: str) -> list[str]:
    """`words` without `option` and its value, in either spelling."""
    kept, skip = [], False
    for word in words:
        if skip or word == option:
            skip = not skip
        elif not word.startswith(f"{option}="):
            kept.append(word)
    return kept
