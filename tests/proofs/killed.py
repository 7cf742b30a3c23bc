"""A `pulumi up` that was killed (-9, the whole process group) heals with the next one: at points of the first `up` and of
one that changes what is there, with Pulumi's CLI on a real cluster (KUBECONFIG, images there). The stack is the forker's
own: an image that cannot be pulled, Grafana's say, must not hold it either.
"""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import yaml

from mlops.environment import ROOT
from tests.cluster import cluster as real
from tests.proofs.secrets import CLI, left_over, make

FIRST, CHANGING = 12, 8
CHANGES = {  # objects that are made, updated, replaced and deleted again
    "serving": {"memory": "1100Mi", "canaryImage": "docker.io/library/mlops-app:dev"},
    "tracking": {"hosts": "mlflow.example.com"},
    "monitoring": {"retention": "14d"},
    "training": {"schedule": "0 4 1 * *"},
}
TOLD = os.environ | {"PULUMI_BACKEND_URL": "file://./.mlops/pulumi"}


def prove(folder: Path) -> dict[str, Any]:
    assert CLI, "pulumi is missing"
    real.delete()
    clone, found = folder / "clone", dict[str, Any](points=[], left=[])
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    started = time.monotonic()
    found["whole"] = make(clone, "deploy")
    found["whole_seconds"] = whole = round(time.monotonic() - started)
    make(clone, "destroy")
    for number in range(FIRST):
        found["points"].append({"up": "first"} | killed(clone, whole * (number + 0.5) / FIRST))
        if number < FIRST - 1:
            make(clone, "destroy")
            found["left"] += left_over()
    started = time.monotonic()
    change(clone, True)
    make(clone, "deploy")
    found["change_seconds"] = whole = round(time.monotonic() - started)
    for number in range(CHANGING):
        change(clone, bool(number % 2))
        found["points"].append({"up": "changing"} | killed(clone, whole * (number + 0.5) / CHANGING))
    make(clone, "destroy")
    found["left"] += left_over()
    healed = sum(point["healed"] and point["preview"] == "no change" for point in found["points"])
    found |= {"healed": healed, "of": FIRST + CHANGING}
    missed = [str(point) for point in found["points"] if not point["healed"]]
    return found | {"holds": healed == found["of"] and not found["left"], "reason": "; ".join(missed)[:2000]}


def change(clone: Path, changed: bool) -> None:
    file = clone / "environments" / "Pulumi.kind.yaml"
    settings = yaml.safe_load(file.read_text())
    for group, values in CHANGES.items():
        own = settings["config"].setdefault(f"mlops:{group}", {})
        own.update(values) if changed else [own.pop(key, None) for key in values]
    file.write_text(yaml.safe_dump(settings))


def killed(clone: Path, seconds: float) -> dict[str, Any]:
    up = ["environments/pulumi", "kind", "up", "--yes"]
    with open(clone / ".mlops" / "up.log", "w") as log:
        process = subprocess.Popen(up, cwd=clone, env=TOLD, stdout=log, stderr=log, start_new_session=True)
    time.sleep(seconds)
    ended = process.poll() is not None
    if not ended:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    point: dict[str, Any] = {"at": round(seconds, 1), "ended_before": ended}
    refused = subprocess.run([*up[:2], "preview"], cwd=clone, env=TOLD, capture_output=True, text=True)
    point["told"] = refused.returncode == 2 and "cancel --yes" in refused.stderr
    if point["told"]:
        subprocess.run([*up[:2], "cancel", "--yes"], cwd=clone, env=TOLD, capture_output=True, check=True)
    try:
        point |= {"healed": bool(make(clone, "deploy")), "did": make(clone, "deploy")}
    except AssertionError as failed:
        point |= {"healed": False, "said": str(failed)[-1500:]}
    check = [*up[:2], "preview", "--expect-no-changes"]
    same = subprocess.run(check, cwd=clone, env=TOLD, capture_output=True, text=True)
    return point | {"preview": "no change" if same.returncode == 0 else same.stdout[-500:]}
