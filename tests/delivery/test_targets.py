"""A build on this machine: the wheel's code runs, whatever runs there before, and outlives who deployed it."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.delivery import build, targets
from cli.delivery.builds import Build
from cli.delivery.road import Road
from mlops.environment import ROOT, Environment
from mlops.errors import UserError


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[targets.OnMachine]:
    about: dict[str, Any] = {"name": "ml", "repository": "", "environments": ["box"], "registry": "", "replay": {}}
    home = tmp_path / "home"
    home.mkdir()
    where: dict[str, Any] = {"home": home, "bucket": f"{home}/bucket", "keyring": home / "keys" / "keyring.json"}
    box = Environment(name="box", **where, endpoint="http://127.0.0.1:8080", tracking="http://127.0.0.1:5001")
    monkeypatch.setattr(targets.Environment, "load", lambda name: box)
    there = targets.OnMachine(Road(**about, store=str(tmp_path / "store")), "box")
    yield there
    there._stop()


def test_one_replaces_the_other_and_a_foreign_wheel_does_not(machine: targets.OnMachine, tmp_path: Path) -> None:
    whole = io.BytesIO(build.wheel(tmp_path, ROOT))
    with zipfile.ZipFile(whole, "a") as archive:  # as a fork has it
        archive.writestr("environments/box/environment.yaml", machine._environment.model_dump_json(exclude={"name"}))
    data = whole.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    machine._road.bucket.put(f"wheels/{digest}.whl", data)
    made = Build(commit="a" * 40, artifacts={"wheel": f"sha256:{digest}"})
    said: list[str] = []
    machine.up(made, said.append)
    first = json.loads(machine._state.read_text())
    assert Path(first["folder"], "app", "main.py").exists()
    assert machine._answers()
    machine.up(made, said.append)
    second = json.loads(machine._state.read_text())
    assert second["pid"] != first["pid"]
    assert not targets._alive(first["pid"])
    assert machine._answers()

    machine._road.bucket.put(f"wheels/{digest}.whl", data + b"more")
    with pytest.raises(UserError, match=r"is not what .* has"):
        machine.up(made, said.append)
    with pytest.raises(UserError, match="has no wheel"):
        machine.up(Build(commit="a" * 40, artifacts={"app": f"x@sha256:{digest}"}), said.append)
    assert machine._answers(), "what runs is only stopped for what can run"
