"""Secrets are where they belong and nowhere else: a platform is deployed, used, changed and destroyed on a real cluster
(KUBECONFIG, images there), and every secret of it is looked for in all that others may read.

With Pulumi's CLI: from a fresh clone, by `make deploy`. Without it the rendered objects are applied, and there is no state to look in.
"""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import yaml

from cli import images
from cli.cluster import Cluster
from mlops.environment import ROOT
from tests.cluster import cluster as real
from tests.cluster.test_platform import golden_row, mlops, predict

CLI = shutil.which("pulumi")
PLANTED = {  # what a person brings along
    "alerting": {"slack-url": f"http://127.0.0.1:9/{secrets.token_hex(16)}", "smtp-password": secrets.token_hex(16)},
    "warehouse": {"WAREHOUSE_URL": f"postgresql://reader:{secrets.token_hex(16)}@warehouse.example.com/rows"},
}
ALERTS = {
    "secret": "alerting",
    "slackChannel": "#x",
    "emailTo": "a@example.com",
    "emailFrom": "b@example.com",
    "smtpHost": "127.0.0.1:9",
}
CHANGES = real.CHANGES | {f"alerts.{key}": value for key, value in ALERTS.items()} | {"training.secret": "warehouse"}
PUBLIC = ("key.json", "AWS_ACCESS_KEY_ID", "MLFLOW_TRACKING_USERNAME")  # a signing key's public half, and names


def prove(folder: Path) -> dict[str, Any]:
    real.delete()
    cluster = Cluster.of("kind")
    assert cluster
    clone, looked, arguments = folder / "clone", folder / "looked", set[bytes]()
    if CLI:
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    for background in (plant, lambda: watch(arguments)):
        threading.Thread(target=background, daemon=True).start()
    started = time.monotonic()
    found: dict[str, Any] = {"by": "make deploy" if CLI else "kubectl apply", "first": deploy(clone, CHANGES)}
    found["first_seconds"] = round(time.monotonic() - started)
    before = workloads()
    found |= {"again": deploy(clone, CHANGES), "again_rolled": differ(before, workloads())}
    use(cluster)
    before, other = workloads(), "docker.io/library/mlops-app:next"
    if shutil.which("ctr"):  # the same image under another name; elsewhere it is built again
        same = ["ctr", "-n", "k8s.io", "images", "tag", "--force", cluster.image("app"), other]
        subprocess.run(same, check=True, capture_output=True)
        real.until(lambda: other in cluster.images(), 300)  # the node says so now and then
    found |= {
        "new_image": deploy(clone, CHANGES | {"images.app": other}),
        "new_image_rolled": differ(before, workloads()),
    }
    looked.mkdir()
    collect(looked, cluster, clone / ".mlops" / "pulumi", arguments)
    values = known()
    (patterns := folder / "patterns").write_text(
        "\n".join({*values, *(base64.b64encode(v.encode()).decode() for v in values)})
    )
    hits, readable = grep(looked, "-f", str(patterns)), {hit.partition("/")[0] for hit in grep(looked, "mlops")}
    sizes = {
        path.name: sum(file.stat().st_size for file in (path, *path.rglob("*"))) for path in sorted(looked.iterdir())
    }
    found |= {"secrets": len(values), "looked_in": sizes, "hits": hits}
    found["destroyed"] = make(clone, "destroy") if CLI else real.delete() or {}
    found["left"] = left_over()
    bars = {
        "first ≤ 360 s": found["first_seconds"] <= 360,
        "again: no change": found["again_rolled"] == [] and set(found["again"]) <= {"unchanged"},
        "a new image rolls serving alone": found["new_image_rolled"] == ["Deployment/serving"],
        "no hit": values and not hits and readable == set(sizes),  # what is compressed would hide everything
        "nothing left": not found["left"],
    }
    missed = [bar for bar, holds in bars.items() if not holds]
    return found | {"holds": not missed, "reason": "; ".join(missed)}


def deploy(clone: Path, changes: dict[str, Any]) -> dict[str, int]:
    done: dict[str, int] = {}
    if CLI:
        file = clone / "environments" / "Pulumi.kind.yaml"
        settings = yaml.safe_load(file.read_text())
        for path, value in changes.items():
            group, _, key = path.partition(".")
            where = settings["config"].setdefault(f"mlops:{group}", {}) if key else settings["config"]
            where[key or f"mlops:{group}"] = value
        file.write_text(yaml.safe_dump(settings))
        done = make(clone, "deploy")
    else:
        real.apply(changes)
    real.wait_until_ready()
    return done


def make(clone: Path, verb: str) -> dict[str, int]:
    """What Pulumi says it did: created, updated …, unchanged."""
    told = os.environ | {"PULUMI_BACKEND_URL": "file://./.mlops/pulumi"}
    done = subprocess.run(["make", verb, "ENV=kind"], cwd=clone, env=told, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    counts = re.findall(r"(\d+) (created|updated|deleted|replaced|unchanged)", done.stdout.rpartition("Resources:")[2])
    return {word: int(number) for number, word in counts}


def plant() -> None:
    """As soon as there is a namespace for them."""
    for name, values in PLANTED.items():
        text = yaml.safe_dump({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": values})
        real.until(lambda text=text: "created" in real.mlops_namespace("apply", "-f", "-", data=text, check=False), 900)


def watch(arguments: set[bytes]) -> None:
    """Of every process that runs meanwhile; on a cluster of this machine that is every container's too."""
    while True:
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                arguments.add(file.read_bytes().replace(b"\0", b" "))
            except OSError:  # it has ended
                continue
        time.sleep(0.2)


def workloads() -> dict[str, Any]:
    """Generation and pods of each."""
    pods = [pod["metadata"] for pod in real.get("pods") if "deletionTimestamp" not in pod["metadata"]]
    found = {}
    for kind, of in (
        (thing["kind"], thing["metadata"]) for thing in real.get("deployments,statefulsets,cronjobs,jobs")
    ):
        own = sorted(pod["uid"] for pod in pods if pod["labels"]["app.kubernetes.io/name"] == of["name"])
        found[f"{kind}/{of['name']}"] = (of["generation"], own)
    return found


def differ(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def use(cluster: Cluster) -> None:
    """Train, release, ask. Meanwhile there are alerts, of a platform without a model, that reach nobody."""
    mlops("snapshot")
    trained = mlops("train")
    mlops("release", trained["digest"], "--why", "proof")
    row = golden_row(cluster, trained["digest"])
    real.until(lambda: predict(cluster, row).status_code == 200, 60)
    mlops("predict", json.dumps(row))


def kinds() -> str:
    names = real.kubectl("api-resources", "--verbs=list", "-o", "name").split()
    return ",".join(
        name for name in names if name != "secrets" and "/" not in name and not name.endswith("metrics.k8s.io")
    )


def collect(folder: Path, cluster: Cluster, state: Path, arguments: set[bytes]) -> None:
    (folder / "objects.json").write_text(real.kubectl("get", kinds(), "-A", "-o", "json"))
    (folder / "rendered.yaml").write_text(yaml.safe_dump_all(real.objects(CHANGES)))
    (folder / "arguments").write_bytes(b"\n".join(arguments.copy()))
    (folder / "logs").mkdir()
    for pod in [pod["metadata"]["name"] for pod in real.get("pods")]:
        for which in ("--previous=false", "--previous"):
            log = real.mlops_namespace("logs", pod, "--all-containers", which, check=False)
            (folder / "logs" / f"{pod}{which}").write_text(log)
    for part in images.TARGETS:  # layers, and how each was made
        images.save(cluster.image(part), folder / f"image-{part}.tar")
    if state.exists():
        shutil.copytree(state, folder / "state")


def left_over() -> list[str]:
    ours = real.kubectl("get", kinds(), "-A", "-l", "app.kubernetes.io/part-of=mlops", "-o", "name").split()
    return ours + re.findall(r"(?m)^namespace/mlops$", real.kubectl("get", "namespaces", "-o", "name"))


def grep(folder: Path, *what: str) -> list[str]:
    found = subprocess.run(["grep", "-rlaF", *what, str(folder)], capture_output=True, text=True).stdout
    return [str(Path(line).relative_to(folder)) for line in found.splitlines()]


def known() -> set[str]:
    """Of every Secret of the namespace what is long enough to be one."""
    values = [
        base64.b64decode(value)
        for thing in real.get("secrets")
        for key, value in thing["data"].items()
        if key not in PUBLIC
    ]
    return {part for value in values for part in re.findall(r"[\w+/=-]{12,}", value.decode())}
