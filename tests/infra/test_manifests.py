"""What others think of the rendered objects: kubeconform, kube-score, checkov, each where it is installed."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.infra import schemas
from tests.infra.rendering import render, write, write_objects
from tests.infra.test_policies import thing
from tests.infra.test_program import CHOICES, CUSTOM

KUBE_SCORE = {
    "container-image-pull-policy": "images are exact or by digest, and a pod must start without the registry",
    "container-security-context-user-group-id": "PostgreSQL and Grafana keep the users of their images, whose files are theirs",
    "container-ephemeral-storage-request-equals-limit": "scratch is bounded, and seldom used",
    "pod-probes-identical": "where nothing but the process can fail, alive is ready; the app, where it can, has two",
    "statefulset-has-servicename": "one replica each, asked for by its Service; nobody asks for a pod by name",
    "statefulset-has-poddisruptionbudget": "one replica each: a budget would block the drain of its node for ever",
    "deployment-has-poddisruptionbudget": "the same; serving and proxy, which have several, have one",
    "deployment-has-host-podantiaffinity": "spread by topologySpreadConstraints, which it does not read",
    "statefulset-has-host-podantiaffinity": "one replica each",
}
CHECKOV = {
    "CKV_K8S_11": "a CPU limit throttles, it protects nobody; requests share the node fairly",
    "CKV_K8S_15": "images are exact or by digest, and a pod must start without the registry",
    "CKV_K8S_35": "libraries read these credentials from the environment alone",
    "CKV_K8S_38": "two workloads ask the Kubernetes API: setup-keys and kube-state-metrics",
    "CKV_K8S_40": "PostgreSQL and Grafana keep the users of their images",
    "CKV_K8S_43": "by digest outside kind",
    "CKV2_K8S_6": "policies select by name; it looks for one of each pod's every label",
}


# One check of checkov for each mutant of the app's pod: tests/infra/policies.py does not repeat these.
MUTANTS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "no seccomp profile": ("CKV_K8S_31", lambda pod: pod["securityContext"].pop("seccompProfile")),
    "on the host's network": ("CKV_K8S_19", lambda pod: pod.update(hostNetwork=True)),
    "privileged": ("CKV_K8S_16", lambda pod: app(pod)["securityContext"].update(privileged=True)),
    "capabilities kept": (
        "CKV_K8S_25",
        lambda pod: app(pod)["securityContext"]["capabilities"].update(add=["NET_ADMIN"]),
    ),
    "root can be written": ("CKV_K8S_22", lambda pod: app(pod)["securityContext"].pop("readOnlyRootFilesystem")),
    "no memory limit": ("CKV_K8S_13", lambda pod: app(pod)["resources"]["limits"].pop("memory")),
    "no readiness": ("CKV_K8S_9", lambda pod: app(pod).pop("readinessProbe")),
    "the newest image": ("CKV_K8S_14", lambda pod: app(pod).update(image="docker.io/library/app:latest")),
}
needs_kubeconform = pytest.mark.skipif(
    not shutil.which("kubeconform"),
    reason="needs kubeconform: go install github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0",
)
needs_kube_score = pytest.mark.skipif(
    not shutil.which("kube-score"),
    reason="needs kube-score: go install github.com/zegl/kube-score/cmd/kube-score@v1.20.0",
)
needs_checkov = pytest.mark.skipif(not shutil.which("checkov"), reason="needs checkov: pipx install checkov")


def app(pod: Any) -> Any:
    return pod["containers"][0]


def rendered(choice: str, folder: Path) -> list[Path]:
    environment, changes = CHOICES[choice]
    return write(environment, folder, changes)


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True)


def checkov(folder: Path) -> set[tuple[str, str]]:
    """Check and resource of each failure."""
    how = ["--framework", "kubernetes", "--skip-download", "--compact", "--quiet", "-o", "json"]
    done = run("checkov", "-d", folder, *how, "--skip-check", ",".join(CHECKOV))
    failed = json.loads(done.stdout).get("results", {}).get("failed_checks", [])
    return {(check["check_id"], check["resource"]) for check in failed}


@needs_kubeconform
def test_kubeconform_finds_all_objects_valid_and_skips_none_that_is_not_listed(tmp_path: Path) -> None:
    where = schemas.standalone(tmp_path / "schemas")
    how = ["-strict", "-ignore-missing-schemas", "-output", "json", "-verbose", "-schema-location", where]
    # tests/infra/test_program.py validates every choice.
    for choice in ("kind", "prod", "the Prometheus Operator", "an Ingress", "scaled by KEDA"):
        (folder := tmp_path / choice.replace(" ", "-")).mkdir()
        files = rendered(choice, folder)
        found: list[dict[str, Any]] = json.loads(run("kubeconform", *how, *files).stdout)["resources"]
        assert len(found) == len(files)
        assert [r for r in found if r["status"] not in ("statusValid", "statusSkipped")] == []
        assert {r["kind"] for r in found if r["status"] == "statusSkipped"} <= set(CUSTOM)


@needs_kube_score
@pytest.mark.parametrize("choice", ["kind", "prod"])
def test_kube_score_finds_nothing_critical(choice: str, tmp_path: Path) -> None:
    ignored = [word for test in KUBE_SCORE for word in ("--ignore-test", test)]
    done = run("kube-score", "score", "--ignore-container-cpu-limit", "-o", "ci", *ignored, *rendered(choice, tmp_path))
    assert "[OK]" in done.stdout
    assert [line for line in done.stdout.splitlines() if line.startswith("[CRITICAL]")] == []


@needs_checkov
@pytest.mark.parametrize("choice", ["a code canary", "prod"])  # between them they have every workload
def test_checkov_finds_nothing(choice: str, tmp_path: Path) -> None:
    rendered(choice, tmp_path)
    assert checkov(tmp_path) == set()


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> set[tuple[str, str]]:
    """What checkov says of all mutants, each under a name of its own: it takes seconds to start."""
    folder, objects = tmp_path_factory.mktemp("mutants"), []
    original = thing(render("prod").objects, "Deployment", "serving")
    for mutant, (_, change) in MUTANTS.items():
        objects.append(copy.deepcopy(original))
        objects[-1]["metadata"]["name"] = slug(mutant)
        change(objects[-1]["spec"]["template"]["spec"])
    write_objects(objects, folder)
    return checkov(folder)


def slug(mutant: str) -> str:
    return mutant.replace(" ", "-").replace("'", "")


@needs_checkov
@pytest.mark.parametrize("mutant", MUTANTS)
def test_checkov_catches_a_mutant_by_the_check_that_is_for_it(mutant: str, reported: set[tuple[str, str]]) -> None:
    found = {check for check, resource in reported if resource == f"Deployment.mlops.{slug(mutant)}"}
    assert found == {MUTANTS[mutant][0]}
