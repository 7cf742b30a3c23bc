"""An environment on a cluster: its commands run in the pods of controller and approver, so kubectl is the only way in."""

import atexit
import base64
import contextlib
import json
import os
import re
import subprocess
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import yaml

from mlops.environment import ROOT
from mlops.errors import UserError
from mlops.releases import author

_CONTROLLER, _APPROVER = "deploy/controller", "deploy/approver"
# Commands that sign, or write what is trusted. They read no row that a caller sent; the controller runs the others.
APPROVING = (
    "release",
    "rollback",
    "rollout pause",
    "rollout resume",
    "rollout promote",
    "rollout abort",
    "bundle import",
    "api-key new",
    "api-key revoke",
)


@dataclass(frozen=True)
class Cluster:
    """`settings`: what Pulumi.yaml declares, as `environments/Pulumi.<name>.yaml` has it."""

    name: str
    settings: dict[str, Any]

    @classmethod
    def of(cls, name: str | None) -> Self | None:
        """None if the environment is this machine's own, or this is one of its pods."""
        name = name or os.environ.get("MLOPS_ENV", "local")
        file = ROOT / "environments" / f"Pulumi.{name}.yaml"
        if "MLOPS_BUCKET" in os.environ or not file.exists():
            return None
        declared = yaml.safe_load((ROOT / "Pulumi.yaml").read_text("utf-8"))["config"]
        defaults = {key: entry["default"] for key, entry in declared.items()}
        changed: dict[str, Any] = {}
        try:
            for key, value in (yaml.safe_load(file.read_text("utf-8"))["config"] or {}).items():
                name_of = key.removeprefix("mlops:")
                grouped = isinstance(value, dict)
                changed |= {f"{name_of}.{path}": each for path, each in value.items()} if grouped else {name_of: value}
        except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
            raise UserError("env", str(file), f"cannot be read as settings: {str(error).splitlines()[0]}") from None
        return cls(name, defaults | changed)

    def image(self, target: str) -> str:
        """As the platform runs it: of the settings, or what was released last, or what this folder contains; '' if none."""
        from infra.images import running  # a pod does not have it, and it may read a whole model's data

        return self.settings[f"images.{target}"] or running(self.name).get(target, "")

    def kubectl(self, *words: str) -> list[str]:
        context = ["--context", self.settings["cluster.context"]] if self.settings["cluster.context"] else []
        return ["kubectl", *context, "-n", self.settings["namespace"], *words]

    def ask(self, *words: str, data: bytes | None = None) -> bytes:
        try:
            done = subprocess.run(self.kubectl(*words), input=data, capture_output=True)
        except FileNotFoundError:
            raise UserError("kubectl", "missing", "install it: clusters are reached through it") from None
        said = done.stderr.decode().strip()[-400:]
        if done.returncode and "does not exist" in said and self.settings["cluster.kind"] == "eks":
            self.log_in()
            return self.ask(*words, data=data)
        if done.returncode:
            raise UserError(f"kubectl {words[0]}", self.name, said or f"exit code {done.returncode}")
        return done.stdout

    @property
    def eks(self) -> dict[str, str]:
        """Name and region of the cluster that infra/aws makes, or was told of."""
        from infra.render import AWS

        settings = AWS.settings(self.name)
        return {"name": settings["cluster"]["name"] or f"mlops-{self.name}", "region": settings["region"]}

    @property
    def s3(self) -> str:
        """The bucket that infra/aws makes, or was told of."""
        from infra.render import AWS

        settings = AWS.settings(self.name)
        return settings["bucket"]["name"] or f"mlops-{self.name}-{settings['account']}"

    def log_in(self) -> None:
        """A context of the kubeconfig for it."""
        eks = self.eks
        words = ["--name", eks["name"], "--region", eks["region"], "--alias", self.settings["cluster.context"]]
        done = subprocess.run(["aws", "eks", "update-kubeconfig", *words], capture_output=True, text=True)
        if done.returncode:
            raise UserError("cluster", eks["name"], f"cannot be reached: {done.stderr.strip()[-300:]}")

    def get(self, kind: str, name: str) -> dict[str, Any]:
        return json.loads(self.ask("get", kind, name, "-o", "json"))

    def secret(self, name: str) -> dict[str, str] | None:
        if not (found := self.ask("get", "secret", name, "--ignore-not-found", "-o", "json")):
            return None
        return {key: base64.b64decode(value).decode() for key, value in json.loads(found)["data"].items()}

    def put_secret(self, name: str, data: dict[str, str]) -> None:
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}
        self.ask("apply", "--server-side", "--force-conflicts", "-f", "-", data=json.dumps(secret).encode())

    def images(self) -> set[str]:
        """Images that the nodes have."""
        nodes = json.loads(self.ask("get", "nodes", "-o", "json"))["items"]
        images = [image for node in nodes for image in node["status"].get("images", [])]
        return {name for image in images for name in image.get("names") or []}

    def run(self, command: str, words: Sequence[str], data: bytes | None = None) -> int:
        """`command`, as `mlops --help` names it, with all its `words`, in the pod that may run it; its output is ours, and
        its exit code is returned."""
        where = _APPROVER if command in APPROVING else _CONTROLLER
        self._wait_for(where)
        told = ["env", f"MLOPS_BY={author()}", f"MLOPS_COMMAND=mlops --env {self.name}"]
        run = self.kubectl("exec", "-i", where, "--", *told, "python", "-m", "cli", *words)
        return subprocess.run(run, input=data).returncode

    def train(self, words: Sequence[str]) -> int:
        """`mlops train` or `retrain` as a Job from the CronJob's template; its log is followed to the end, its exit code
        returned."""
        self._wait_for("deploy/tracking")
        template = self.get("cronjob", "training")["spec"]["jobTemplate"]
        name = time.strftime("training-%Y%m%d-%H%M%S", time.gmtime())
        container = template["spec"]["template"]["spec"]["containers"][0]
        told = {"MLOPS_COMMAND": f"mlops --env {self.name}", "MLOPS_BY": author()}
        container["env"] += [{"name": name, "value": value} for name, value in told.items()]
        container |= {"command": ["python", "-m", "cli"], "args": list(words)}
        job = {"apiVersion": "batch/v1", "kind": "Job", "spec": template["spec"]}
        job["metadata"] = {"name": name, **template["metadata"]}
        self.ask("create", "-f", "-", data=json.dumps(job).encode())
        followed = False
        while True:
            pods = json.loads(self.ask("get", "pods", "-l", f"job-name={name}", "-o", "json"))["items"]
            for state in [each["state"] for pod in pods for each in pod["status"].get("containerStatuses", [])]:
                if waiting := state.get("waiting", {}).get("message"):
                    raise UserError("job", name, f"did not start: {waiting}; see `kubectl describe job {name}`")
                if not followed and "waiting" not in state:
                    followed = subprocess.run(self.kubectl("logs", "-f", f"job/{name}")).returncode == 0
                elif "terminated" in state:
                    return state["terminated"]["exitCode"]
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
        if key := (self.secret("client-key") or {}).get("client.key"):
            os.environ.setdefault("MLOPS_API_KEY", key)
        self._use(f"http://127.0.0.1:{port.group(1)}", ROOT / ".mlops" / self.name, Path("none"))

    @contextlib.contextmanager
    def keyring(self) -> Generator[None]:
        """The cluster's keyring as a local file while it is changed: whoever may write the cluster's Secrets decides which
        keys it trusts. A concurrent change is not overwritten."""
        found = self.get("configmap", "keyring")
        with TemporaryDirectory() as folder:
            path = Path(folder, "keyring.json")
            path.write_text(found["data"]["keyring.json"], encoding="utf-8")
            self._use("none", Path(folder), path)
            yield
            for private in path.parent.glob("*.pem"):
                role, text = private.stem.partition("-")[0], private.read_text("utf-8")
                patch = json.dumps({"stringData": {private.name: text}})
                self.ask("patch", "secret", f"signing-{role}", "--patch-file", "/dev/stdin", data=patch.encode())
            found["data"]["keyring.json"] = path.read_text("utf-8")
            self.ask("replace", "-f", "-", data=json.dumps(found).encode())

    def _use(self, endpoint: str, home: Path, keyring: Path) -> None:
        """As the environment of this process."""
        known = {"ENV": self.name, "ENDPOINT": endpoint, "HOME": home, "BUCKET": home / "bucket"}
        known |= {"KEYRING": keyring, "TRACKING": "none"}
        os.environ |= {f"MLOPS_{key}": str(value) for key, value in known.items()}
