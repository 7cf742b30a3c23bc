"""From nothing to an answer on a real cluster, and what it survives there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import yaml

from cli.bundle import receive
from cli.cluster import Cluster
from mlops.environment import ROOT, Environment
from mlops.errors import VerificationError
from mlops.keys import Key
from tests.cluster import cluster as real
from tests.infra.test_program import CHOICES, CUSTOM


def mlops(*words: str, code: int = 0, **environment: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "cli", "--env", "kind", "--json", *words]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == code, (
        f"mlops {' '.join(words)}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    )
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


@pytest.fixture(scope="module")
def dry_run() -> Iterator[str]:
    """A namespace that enforces "restricted", for what is not really applied."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/warn": "restricted"}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "mlops-dry-run", "labels": labels}}
    real.kubectl("apply", "-f", "-", data=yaml.safe_dump(namespace))
    yield "mlops-dry-run"
    real.kubectl("delete", "namespace", "mlops-dry-run", "--wait=false")


@pytest.mark.parametrize("choice", CHOICES)
def test_the_api_server_takes_every_choice_and_warns_of_nothing(choice: str, dry_run: str) -> None:
    environment, changes = CHOICES[choice]
    here = {"namespace": dry_run, "serving.nodePort": 0}  # its port may be taken here
    objects = [t for t in real.objects(changes | here, environment) if t["kind"] not in (*CUSTOM, "Namespace")]
    command = ["kubectl", "apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-"]
    done = subprocess.run(command, input=yaml.safe_dump_all(objects), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_without_a_model_everything_is_ready_and_says_so(platform: Cluster) -> None:
    answer = httpx.post(f"http://127.0.0.1:{real.NODE_PORT}/predict", json={}, headers=key())
    assert (answer.status_code, answer.json()) == (503, {"detail": "no model released"})
    assert mlops("status")["release"] is None


_ASK_MLFLOW = """
import os, sys, time, httpx
login = os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]
answers, end = [], time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    try:
        asked = httpx.post("http://tracking:5000/api/2.0/mlflow/experiments/search", json={"max_results": 9}, auth=login, timeout=20)
        answers.append(asked.status_code)
    except httpx.HTTPError as error:
        answers.append(repr(error))
    time.sleep(0.05)
print(len(answers), sorted({str(answer) for answer in answers}))
"""


def test_mlflow_gets_another_database_user_and_answers_all_the_while(platform: Cluster) -> None:
    command = platform.kubectl("exec", "deploy/controller", "--", "python", "-c", _ASK_MLFLOW, "60")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as asking:
        assert mlops("rotate", "db") == {"user": "mlflow_b"}
        count, _, answers = asking.communicate()[0].partition(" ")
    assert int(count) > 100
    assert answers.strip() == "['200']"


@pytest.mark.parametrize("after", ["database-user-next", "rotate-database", "rotate-retire"])
def test_a_rotation_that_was_killed_is_finished_by_the_next(after: str, platform: Cluster) -> None:
    def begun() -> bool:
        return after in real.mlops_namespace("get", "secrets,jobs", "-o", "name")

    for job in real.get("jobs"):
        if job["metadata"]["name"].startswith("rotate-"):
            real.mlops_namespace("delete", "job", job["metadata"]["name"])
    command = [sys.executable, "-m", "cli", "--env", "kind", "rotate", "db"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as rotating:
        real.until(begun, 300)
        rotating.kill()
    user = mlops("rotate", "db")["user"]
    assert user == real.secret("database-user", "user")
    assert real.mlops_namespace("get", "secret", "database-user-next", "--ignore-not-found") == ""
    real.wait_until_ready()


def test_the_platform_for_eks_runs_here_but_for_what_only_aws_has(platform: Cluster) -> None:
    objects = real.objects({"cluster.kind": "eks"})
    here = [thing for thing in objects if thing["kind"] not in (*CUSTOM, "StorageClass")]
    real.mlops_namespace("delete", "jobs", "-l", "app.kubernetes.io/part-of=mlops")
    try:
        real.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", data=yaml.safe_dump_all(here))
        real.wait_until_ready()
        assert mlops("status")["release"] is None
    finally:
        real.mlops_namespace("delete", "jobs", "-l", "app.kubernetes.io/part-of=mlops")
        real.kubectl("-n", "kube-system", "delete", "configmap", "amazon-vpc-cni", "--ignore-not-found")
        real.mlops_namespace("delete", "role,rolebinding", "github-train", "github-promote", "--ignore-not-found")
        real.apply()
        real.wait_until_ready()


def test_no_identity_does_more_in_the_bucket_than_its_own(platform: Cluster) -> None:
    refused = "from mlops.environment import Environment; Environment.load().store.{}"
    for workload, attempt in {
        "deploy/serving": "put('models/x', b'')",
        "deploy/controller": "put('models/x/releases/1.json', b'')",
        "deploy/approver": "get('predictions/x')",
        "deploy/tracking": "put('predictions/x', b'')",
    }.items():
        env = [
            "env",
            "MLOPS_ENV=kind",
            "MLOPS_BUCKET=s3://mlops",
            "MLOPS_KEYRING=x",
            "MLOPS_ENDPOINT=x",
            "MLOPS_TRACKING=x",
        ]
        done = real.mlops_namespace("exec", workload, "--", *env, "python", "-c", refused.format(attempt), check=False)
        assert "denied" in done.lower() or "privileges" in done.lower(), f"{workload}: {done[-500:]}"


@pytest.fixture(scope="session")
def released(platform: Cluster) -> dict[str, Any]:
    """Trained by a Job from the snapshot, released, answering."""
    starts = restarts()
    mlops("snapshot")
    trained = mlops("train")
    assert trained["gate"] == "passed"
    release = mlops("release", trained["digest"], "--why", "first")
    assert release["champion"] == trained["digest"]
    row = golden_row(platform, trained["digest"])
    real.until(lambda: predict(platform, row).status_code == 200, 60)
    assert restarts() == starts
    return {"digest": trained["digest"], "row": row}


def restarts() -> dict[str, int]:
    return {
        p["metadata"]["name"]: p["status"]["containerStatuses"][0]["restartCount"]
        for p in real.get("pods", "-l", "app.kubernetes.io/name=serving")
    }


def key() -> dict[str, str]:
    return {"authorization": f"Bearer {real.secret('client-key', 'client.key')}"}


def predict(platform: Cluster, row: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"http://127.0.0.1:{real.NODE_PORT}/predict", json={"rows": [row]}, headers=key(), timeout=10)


def golden_row(platform: Cluster, digest: str) -> dict[str, Any]:
    script = f"from mlops.environment import Environment; print(Environment.load().store.get('models/{real.MODEL}/bundles/{digest}/golden.json').decode())"
    return json.loads(platform.ask("exec", "deploy/controller", "--", "python", "-c", script))["rows"][0]


def test_a_model_trained_in_the_cluster_answers_through_the_proxy(platform: Cluster, released: dict[str, Any]) -> None:
    answer = predict(platform, released["row"]).json()
    assert answer["model_version"] == released["digest"]
    assert mlops("predict", json.dumps(released["row"]))["model_version"] == released["digest"]
    assert mlops("check", released["digest"])["valid"]


def test_a_model_leaves_the_cluster_and_is_verified_where_it_arrives(
    platform: Cluster, released: dict[str, Any], environment: Environment
) -> None:
    assert mlops("smoke")["rows"] > 0
    command = [sys.executable, "-m", "cli", "--env", "kind", "bundle", "export", released["digest"]]
    archive = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    model = environment.model(real.MODEL)
    with pytest.raises(VerificationError, match="signing-key trust"):
        receive(model, archive)
    for key in mlops("signing-key", "list")["keys"]:
        environment.keys.trust(Key.model_validate(key))
    assert receive(model, archive) == released["digest"]


def test_mlflow_asks_who_you_are(platform: Cluster, released: dict[str, Any]) -> None:
    script = "import httpx, os; print(httpx.get(os.environ['MLOPS_TRACKING'] + '/api/2.0/mlflow/registered-models/search').status_code)"
    assert platform.ask("exec", "deploy/controller", "--", "python", "-c", script).strip() == b"401"


def test_a_job_reads_the_log_and_says_whether_a_training_is_due(released: dict[str, Any]) -> None:
    assert mlops("retrain", "--if-due") == {"due": False}
    assert mlops("quality")["model_version"] == released["digest"]


@pytest.fixture(scope="session")
def second(platform: Cluster, released: dict[str, Any]) -> str:
    """Another model that passed the gate."""
    trained = mlops("train", "--seed", "1")
    assert trained["digest"] != released["digest"]
    return trained["digest"]


def wait_for_answers_by(platform: Cluster, row: dict[str, Any], digest: str, seconds: float = 60) -> None:
    """Until fifty answers in a row are by this model. None may fail meanwhile."""
    alike, deadline = 0, time.monotonic() + seconds
    with httpx.Client(base_url=f"http://127.0.0.1:{real.NODE_PORT}", headers=key(), timeout=10) as http:
        while alike < 50:
            answer = http.post("/predict", json={"rows": [row]})
            assert answer.status_code == 200, answer.text
            alike = alike + 1 if answer.json()["model_version"] == digest else 0
            assert alike or time.monotonic() < deadline, f"others than {digest[:12]} still answer"


def test_blue_green_is_confirmed_by_each_pod_and_rolled_back(
    platform: Cluster, released: dict[str, Any], second: str
) -> None:
    activated = mlops("release", second, "--mode", "blue-green", "--why", "all at once")
    assert (activated["champion"], activated["challenger"]) == (second, released["digest"])
    wait_for_answers_by(platform, released["row"], second)
    assert mlops("rollback", "--why", "back")["champion"] == released["digest"]
    wait_for_answers_by(platform, released["row"], released["digest"])


def test_a_canary_is_scored_by_both_and_judged_in_the_cluster(
    platform: Cluster, released: dict[str, Any], second: str
) -> None:
    mlops("release", second, "--mode", "canary", "--weight", "0.5", "--why", "try")
    paused = mlops("rollout", "pause", "--why", "as long as I look")
    rows = [released["row"] | context(platform, number) for number in range(40)]
    seen: set[str] = set()

    def both_answer() -> bool:
        seen.update(predict(platform, row).json()["model_version"] for row in rows)
        return seen == {released["digest"], second}

    real.until(both_answer, 60)
    real.until(lambda: mlops("rollout", "status")["verdict"]["rows"] > 0, 60)
    status = mlops("rollout", "status")
    assert status["release"]["revision"] == paused["revision"]
    assert status["verdict"]["decision"] != "abort"
    assert mlops("rollback", "--why", "enough")["champion"] == released["digest"]


def context(platform: Cluster, number: int) -> dict[str, Any]:
    """The entity's columns, so that each row is about another."""
    found = httpx.get(f"http://127.0.0.1:{real.NODE_PORT}/model", headers=key()).json()["contract"]
    return {name: f"{number}" for name in found["entity"] if found["features"].get(name, {}).get("unknown") != "reject"}
