"""The Compose file, without a container engine: valid by the specification, and whatever it names is there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mlflow.cli
import pytest
import yaml
from jsonschema.validators import validator_for

from infra import provision
from infra.images import TARGETS
from infra.provision import Folder, keys
from infra.provision import files as compose_files
from mlops.environment import ROOT
from mlops.errors import UserError

FILE = ROOT / "environments" / "local" / "compose.yaml"
COMPOSE = yaml.safe_load(FILE.read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
IMAGES = {
    key: entry["default"]
    for key, entry in yaml.safe_load((ROOT / "Pulumi.yaml").read_text())["config"].items()
    if key.startswith("images.")
}
LINES = {
    name: " ".join([*service.get("entrypoint", []), *service.get("command", [])]) for name, service in SERVICES.items()
}


def test_it_is_valid_by_the_specification() -> None:
    schema = json.loads((files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json").read_text())
    validator = validator_for(schema)(schema)
    assert [
        f"{'.'.join(map(str, fault.absolute_path))}: {fault.message}" for fault in validator.iter_errors(COMPOSE)
    ] == []
    wrong = COMPOSE | {"services": {"x": {"image": "x", "imagee": "x"}}}
    assert not validator.is_valid(wrong)


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_refers_to_is_declared_or_on_disk(name: str) -> None:
    service = SERVICES[name]
    for volume in service.get("volumes", []):
        source = volume["source"] if isinstance(volume, dict) else volume.split(":")[0]
        assert (FILE.parent / source).exists() if source.startswith(".") else source in COMPOSE["volumes"], source
    assert {config["source"] for config in service.get("configs", [])} <= set(COMPOSE["configs"])
    assert set(service.get("depends_on", {})) <= set(SERVICES)
    if build := service.get("build"):
        assert (FILE.parent / build["context"]).resolve() == ROOT
        assert build["target"] in re.findall(r"^FROM .* AS (\w+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
        assert service["image"] == f"mlops-{build['target']}:dev"
    for host in re.findall(r"\w+://(?:\w+@)?(\w+):\d+", json.dumps([service, COMPOSE["configs"]])):
        assert host in SERVICES, host


def test_images_are_those_of_the_cluster_and_ours_are_built_here() -> None:
    """Ours are pinned by what they are built from; everybody else's version has its home in Pulumi.yaml."""
    ours = {service["image"] for service in SERVICES.values() if "mlops-" in service["image"]}
    assert ours == {f"mlops-{target}:dev" for target in TARGETS}
    assert ours == {service["image"] for service in SERVICES.values() if "build" in service}
    assert {service["image"] for service in SERVICES.values()} - ours <= set(IMAGES.values())


def test_every_command_exists_and_every_secret_it_reads_is_made(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    keys(folder, "local")
    compose_files(folder)
    for name, service in SERVICES.items():
        asked = set(re.findall(r"/secrets/([\w./-]+)", json.dumps(service)))
        asked -= (
            {"keyring.json"} if name.startswith("setup-") or name == "tracking" else set()
        )  # of all, not read there
        assert not asked or folders(name), name
        assert [path for path in asked for own in folders(name) if not (tmp_path / own / path).is_file()] == [], name
    modules = {module for line in LINES.values() for module in re.findall(r"python -m ([\w.]+)", line)}
    assert {"app", "infra.provision", "cli", "monitoring.controller", "monitoring.approver"} == modules
    assert all(map(find_spec, modules))
    steps = {step for line in LINES.values() for step in re.findall(r"infra\.provision (\w+)", line)}
    with pytest.raises(UserError) as refused:
        provision.main("nothing")
    assert steps == {"folder", "database", "bucket"} <= set(re.findall(r"\w+", refused.value.hint))
    flags = {flag for parameter in mlflow.cli.server.params for flag in parameter.opts}
    assert set(re.findall(r"--[a-z-]+", LINES["tracking"])) <= flags


def folders(name: str) -> list[str]:
    """Of the volume with secrets, those that a service sees; '' is all of it."""
    volumes = SERVICES[name].get("volumes", [])
    whole = [""] * any(isinstance(each, str) and each.startswith("secrets:") for each in volumes)
    return whole + [each["volume"]["subpath"] for each in volumes if isinstance(each, dict)]


def test_a_service_sees_its_own_secrets_alone_and_who_trains_cannot_approve(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    keys(folder, "local")
    compose_files(folder)
    assert {each.stat().st_mode & 0o077 for each in tmp_path.rglob("*")} == {0}
    approval = next(tmp_path.glob("signing-approve/*.pem")).name
    reachable = {name: [file for own in folders(name) for file in (tmp_path / own).rglob("*")] for name in SERVICES}
    holders = {name for name, files in reachable.items() if approval in {file.name for file in files}}
    assert holders == {"keys", "approver", "approve"}  # `keys` makes them, and ends
    assert [name for name in SERVICES if folders(name) == [""]] == ["keys"]
    others = {"mlops": "for-controller", "approve": "for-approver"}
    assert all(folders(name) in ([], [others.get(name, f"for-{name}")]) for name in SERVICES if name != "keys")


@pytest.mark.skipif(not shutil.which("prometheus"), reason="prometheus is not on the PATH (Debian: prometheus)")
def test_prometheus_takes_what_its_service_makes_of_the_configuration(tmp_path: Path) -> None:
    script = SERVICES["prometheus"]["command"][0].replace("$$", "$")
    (tmp_path / "etc").symlink_to(
        ROOT / "monitoring" / "prometheus"
    )  # the way to the repository may have a space in it
    script = script.replace("/tmp/", f"{tmp_path}/").replace("/etc/prometheus/", f"{tmp_path}/etc/")
    done = subprocess.run(["sh", "-c", script.partition("exec ")[0]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = yaml.safe_load((tmp_path / "prometheus.yaml").read_text())
    assert made["global"]["external_labels"] == {"namespace": "local"}
    assert "$NAMESPACE" not in str(made)
    assert [f":{Path(rules).parent}:" in str(SERVICES["prometheus"]["volumes"]) for rules in made["rule_files"]] == [
        True
    ]
    known = subprocess.run(["prometheus", "--help"], capture_output=True, text=True)
    assert [flag for flag in re.findall(r"--[a-z.-]+", script) if flag not in known.stdout + known.stderr] == []
