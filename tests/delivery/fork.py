"""A team's copy of this repository on a `Forge`, with a small model, and dev, staging and prod on this machine."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from cli.delivery.builds import Build
from mlops.environment import ROOT, Environment
from mlops.keys import Keyring
from mlops.store import Store
from tests import synthetic
from tests.delivery.forge import Forge

STAGES = ("dev", "staging", "prod")


class Fork:
    def __init__(self, folder: Path, forge: Forge):
        self.folder, self.forge = folder, forge
        self.work = forge.clone(folder / "work")
        self.store, self.bin = Store(str(folder / "delivery")), folder / "bin"
        self.bin.mkdir()
        (self.bin / "uv").symlink_to(shutil.which("uv") or Path(sys.prefix).parent / ".uv" / "bin" / "uv")
        forge.path = [self.bin]
        listed = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        for name in subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split("\0"):
            if name and (ROOT / name).is_file():
                (self.work / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, self.work / name)

    def on_machines(self) -> Fork:
        """What a team without a cluster changes."""
        for name in STAGES:
            (self.work / "environments" / f"Pulumi.{name}.yaml").unlink()
            home, file = self.folder / name, self.work / "environments" / name / "environment.yaml"
            file.parent.mkdir()
            addresses = {"endpoint": "http://127.0.0.1:8080", "tracking": "http://127.0.0.1:5001"}
            where = {"home": str(home), "bucket": f"{home}/bucket", "keyring": f"{home}/keys/keyring.json"}
            file.write_text(yaml.safe_dump(where | addresses))
        return self._adopted()

    def on_clusters(self) -> Fork:
        """Of any kind, behind stand-ins of pulumi, docker and kubectl."""
        for name in STAGES:
            self.change(
                f"environments/Pulumi.{name}.yaml", ("kind: eks", "kind: kubeconfig"), ("kind: s3", "kind: external")
            )
        self.change("environments/delivery.yaml", ('registry: ""', "registry: registry.example.com/ml"))
        self.forge.path.insert(0, Path(__file__).parent / "bin_cluster")
        backend = self.folder / "pulumi"
        backend.mkdir()
        self.forge.env |= {"PULUMI_BACKEND_URL": f"file://{backend}", "REGISTRY": str(self.folder / "registry")}
        return self._adopted()

    def _adopted(self) -> Fork:
        """With the keys that `mlops adopt` would make, and a small model; without the workflows that are no part of the road."""
        for name in ("ci.yml", "comment.yml"):
            (self.work / ".github" / "workflows" / name).unlink()
        shutil.rmtree(self.work / "environments" / "aws")
        self.change(
            "environments/delivery.yaml",
            ('repository: ""', "repository: acme/ml"),
            ("store: .mlops/delivery", f"store: {self.folder / 'delivery'}"),
            ("{staging: 0.95..1.0}", "{}"),
        )
        keyring = Keyring(self.work / "environments" / "keyring.json", self.folder / "delivery" / "keys")
        keyring.new("build")
        for name in STAGES:
            keyring.new("approve", name)
        for kind in ("training", "tests"):
            shutil.rmtree(self.work / kind / "models")
        synthetic.write_model(self.work / "training" / "models", synthetic.frame())
        return self

    def change(self, name: str, *changes: tuple[str, str]) -> None:
        file = self.work / name
        text = file.read_text()
        for old, new in changes:
            assert old in text, f"{name} has no {old!r}"
            text = text.replace(old, new)
        file.write_text(text)

    def commit(self, message: str) -> str:
        for words in (("add", "-A"), ("commit", "-q", "-m", message)):
            subprocess.run(["git", "-C", self.work, *words], check=True)
        return self.head

    @property
    def head(self) -> str:
        return subprocess.run(
            ["git", "-C", self.work, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()

    def pull(self) -> None:
        subprocess.run(["git", "-C", self.work, "pull", "-q", "--rebase", "--autostash"], check=True)

    def deployments(self, stage: str) -> list[dict[str, Any]]:
        found = (self.store.get(key) or b"{}" for key in self.store.keys(f"deployments/{stage}"))
        return [json.loads(each) for each in found]

    def running(self, stage: str) -> str:
        """The digest of what was deployed last."""
        return Build.model_validate(self.deployments(stage)[-1]["build"]).digest

    def environment(self, stage: str) -> Environment:
        home = self.folder / stage
        running = json.loads((home / "running.json").read_text())
        return Environment(
            name=stage, home=home, bucket=f"{home}/bucket", keyring=home / "keys" / "keyring.json",
            endpoint=running["endpoint"], tracking=running["tracking"],
        )  # fmt: skip

    def stop(self) -> None:
        for stage in STAGES:
            state = self.folder / stage / "deployed.json"
            if state.exists():
                subprocess.run(["kill", str(json.loads(state.read_text())["pid"])], capture_output=True)
