"""The rendered platform on a real cluster, applied as `pulumi up` would, without its CLI."""

from __future__ import annotations

import base64
import json
import subprocess
import time
from collections.abc import Callable
from typing import Any

import yaml

from cli.cluster import Cluster
from cli.images import TARGETS
from mlops.environment import MODELS
from tests.infra.rendering import render

NODE_PORT = 30080
MODEL = next((path.parent.name for path in sorted(MODELS.glob("*/contract.yaml"))), "")  # whatever the images hold
# There is no image of these two here.
CHANGES: dict[str, Any] = {"grafana.enabled": False, "kubeStateMetrics.enabled": False, "model": MODEL}


def kubectl(*words: str, data: str | None = None, check: bool = True) -> str:
    done = subprocess.run(["kubectl", *words], input=data, capture_output=True, text=True)
    assert not check or done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr[-2000:]}"
    return done.stdout if done.returncode == 0 else done.stderr


def mlops_namespace(*words: str, **how: Any) -> str:
    return kubectl("-n", "mlops", *words, **how)


def objects(changes: dict[str, Any] | None = None, environment: str = "kind") -> list[dict[str, Any]]:
    found = render(environment, CHANGES | (changes or {})).objects
    return sorted(found, key=lambda thing: thing["kind"] != "Namespace")


def apply(changes: dict[str, Any] | None = None) -> None:
    """Server-side, as the provider does it."""
    text = yaml.safe_dump_all(objects(changes))
    kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", data=text)


def delete() -> None:
    everything = [thing for thing in objects() if thing["metadata"].get("namespace") != "mlops"]
    kubectl("delete", "--ignore-not-found", "--timeout=300s", "-f", "-", data=yaml.safe_dump_all(everything))


def get(kind: str, *words: str) -> list[dict[str, Any]]:
    return json.loads(mlops_namespace("get", kind, "-o", "json", *words))["items"]


def not_ready() -> list[str]:
    """Workloads that are not as they are meant to be."""
    late = []
    for thing in get("deployments,statefulsets,jobs"):
        status, spec = thing["status"], thing["spec"]
        if thing["kind"] == "Job":
            ready = status.get("succeeded", 0) >= 1
        else:
            wanted = spec.get("replicas", 1)
            counts = [status.get(name, 0) for name in ("readyReplicas", "updatedReplicas")]
            seen = status.get("observedGeneration", 0) >= thing["metadata"]["generation"]
            ready = seen and min(counts) >= wanted and status.get("replicas", 1) == wanted
        if not ready:
            late.append(f"{thing['kind']}/{thing['metadata']['name']}")
    return late


def until(condition: Callable[[], Any], seconds: float, otherwise: Callable[[], str] = lambda: "") -> float:
    """Returns how long it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"not within {seconds} s {otherwise()}"
        time.sleep(0.5)
    return time.monotonic() - started


def wait_until_ready(seconds: float = 360) -> float:
    return until(
        lambda: not not_ready(), seconds, lambda: f"{not_ready()}\n{mlops_namespace('get', 'pods', '-o', 'wide')}"
    )


def secret(name: str, key: str) -> str:
    encoded = json.loads(mlops_namespace("get", "secret", name, "-o", "json"))["data"][key]
    return base64.b64decode(encoded).decode()


def images_present() -> bool:
    cluster = Cluster.of("kind")
    assert cluster
    return {cluster.image(name) for name in TARGETS} <= cluster.images()
