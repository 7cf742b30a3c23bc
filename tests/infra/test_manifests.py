"""What others think of the rendered objects: kubeconform, kube-score, checkov, each where it is installed."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.infra import schemas
from tests.infra.harness import write
from tests.infra.test_program import CHOICES

CUSTOM = {"ServiceMonitor", "PrometheusRule"}  # an operator's: no schema of theirs is here
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


def rendered(choice: str, folder: Path) -> list[Path]:
    environment, changes = CHOICES[choice]
    return write(environment, folder, changes)


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True)


@pytest.mark.skipif(
    not shutil.which("kubeconform"),
    reason="needs kubeconform: go install github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0",
)
def test_kubeconform_finds_all_objects_valid_and_skips_none_that_is_not_listed(tmp_path: Path) -> None:
    where = schemas.standalone(tmp_path / "schemas")
    for choice in (
        "kind",
        "prod",
        "the Prometheus Operator",
        "an Ingress",
    ):  # tests/infra/test_program.py validates every one
        (folder := tmp_path / choice.replace(" ", "-")).mkdir()
        files = rendered(choice, folder)
        done = run(
            "kubeconform",
            "-strict",
            "-ignore-missing-schemas",
            "-output",
            "json",
            "-verbose",
            "-schema-location",
            where,
            *files,
        )
        found: list[dict[str, Any]] = json.loads(done.stdout)["resources"]
        assert len(found) == len(files)
        assert [r for r in found if r["status"] not in ("statusValid", "statusSkipped")] == []
        assert {r["kind"] for r in found if r["status"] == "statusSkipped"} <= CUSTOM


@pytest.mark.skipif(
    not shutil.which("kube-score"),
    reason="needs kube-score: go install github.com/zegl/kube-score/cmd/kube-score@v1.20.0",
)
@pytest.mark.parametrize("choice", ["kind", "prod"])
def test_kube_score_finds_nothing_critical(choice: str, tmp_path: Path) -> None:
    ignored = [word for test in KUBE_SCORE for word in ("--ignore-test", test)]
    done = run("kube-score", "score", "--ignore-container-cpu-limit", "-o", "ci", *ignored, *rendered(choice, tmp_path))
    assert [line for line in done.stdout.splitlines() if line.startswith("[CRITICAL]")] == []


@pytest.mark.skipif(not shutil.which("checkov"), reason="needs checkov: pipx install checkov")
def test_checkov_finds_nothing(tmp_path: Path) -> None:
    rendered("prod", tmp_path)
    done = run(
        "checkov",
        "-d",
        tmp_path,
        "--framework",
        "kubernetes",
        "--skip-download",
        "--compact",
        "--quiet",
        "-o",
        "json",
        "--skip-check",
        ",".join(CHECKOV),
    )
    found = json.loads(done.stdout)
    failed = found.get("results", {}).get("failed_checks", [])
    assert [(check["check_id"], check["check_name"], check["resource"]) for check in failed] == []
