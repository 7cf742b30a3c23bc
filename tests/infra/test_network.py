from __future__ import annotations

import itertools
from typing import Any

import pytest

from infra.workload import NAME
from mlops.environment import ROOT
from tests.infra.rendering import render
from tests.infra.test_program import CHOICES

Objects = list[dict[str, Any]]


def workloads(objects: Objects) -> dict[str, dict[str, str]]:
    """Pod labels by name."""
    found = {}
    for thing in objects:
        spec = thing["spec"]["jobTemplate"]["spec"] if thing["kind"] == "CronJob" else thing.get("spec", {})
        if "metadata" in spec.get("template", {}):
            labels = spec["template"]["metadata"]["labels"]
            found[labels[NAME]] = labels
    return found


def allowed(objects: Objects, way: str, pod: dict[str, str], other: dict[str, str] | None) -> set[int]:
    """Ports on which the policies let `pod` (`way`: ingress from, egress to) talk with `other` (None: out of the cluster)."""
    ends, ports = {"ingress": "from", "egress": "to"}[way], set()
    for policy in (thing["spec"] for thing in objects if thing["kind"] == "NetworkPolicy"):
        if policy["podSelector"].get("matchLabels", {}).items() <= pod.items():
            for rule in policy.get(way, []):
                for peer in rule.get(ends, []):
                    selected = peer.get("podSelector", {}).get("matchLabels")
                    inside = other is not None and selected is not None and selected.items() <= other.items()
                    if inside or (other is None and "ipBlock" in peer):
                        ports |= {port["port"] for port in rule["ports"]}
    return ports


def from_namespaces(objects: Objects) -> list[tuple[str, str, int]]:
    """What other namespaces, each as a whole, may reach here."""
    found = []
    for policy in (thing["spec"] for thing in objects if thing["kind"] == "NetworkPolicy"):
        for rule in policy.get("ingress", []):
            for peer in rule.get("from", []):
                for namespace in peer.get("namespaceSelector", {}).get("matchLabels", {}).values():
                    name = policy["podSelector"]["matchLabels"][NAME]
                    found += [(f"namespace/{namespace}", name, port["port"]) for port in rule["ports"]]
    return found


def matrix(objects: Objects) -> list[tuple[str, str, int]]:
    """What may flow, found from the policies alone: both ends must allow it."""
    pods, found = workloads(objects), []
    for (source, a), (target, b) in itertools.permutations(pods.items(), 2):
        found += [
            (source, target, port) for port in allowed(objects, "egress", a, b) & allowed(objects, "ingress", b, a)
        ]
    for name, labels in pods.items():
        found += [("anywhere", name, port) for port in allowed(objects, "ingress", labels, None)]
        found += [(name, "outside", port) for port in allowed(objects, "egress", labels, None)]
    return sorted(found + from_namespaces(objects))


def test_the_documented_matrix_is_what_the_policies_allow() -> None:
    rows = [
        "| from | to | port |",
        "|---|---|---|",
        *(f"| {a} | {b} | {port} |" for a, b, port in matrix(render("kind").objects)),
    ]
    assert "\n".join(rows) in (ROOT / "docs" / "cluster.md").read_text()


@pytest.mark.parametrize("choice", CHOICES)
def test_nobody_reaches_what_is_not_theirs(choice: str) -> None:
    environment, changes = CHOICES[choice]
    flows = matrix(render(environment, changes).objects)
    monitoring, keda = changes.get("monitoring.kind", "bundled"), changes.get("serving.scaleOn") == "keda"
    scraping = {"bundled": {"prometheus"}, "operator": {"namespace/monitoring"}, "none": set()}[monitoring]
    asking = {"namespace/keda"} if keda and monitoring == "bundled" else set()
    into = {target: {source for source, t, _ in flows if t == target} for _, target, _ in flows}
    assert into["serving"] == {"proxy"} | scraping
    assert into.get("bucket", set()) <= {"serving", "training", "controller", "approver", "tracking", "setup-bucket"}
    assert into.get("database", set()) <= {"tracking", "controller", "setup-database"}
    assert into.get("prometheus", set()) - {"grafana"} == asking
    assert {source for source, _, _ in flows if source.startswith("namespace/")} == asking | scraping - {"prometheus"}
    outside = {source for source, target, _ in flows if target == "outside"}
    bundled = choice in ("kind", "a cluster brought along", "no Grafana", "scaled by KEDA", "scaled by an adapter")
    assert not bundled or outside == {"setup-keys", "kube-state-metrics"}  # the Kubernetes API


@pytest.mark.parametrize(("kind", "bundled"), [("bundled", True), ("none", False)])
def test_the_controller_asks_the_alertmanager_that_it_may_reach(kind: str, bundled: bool) -> None:
    objects = render("kind", {"monitoring.kind": kind}).objects
    (pod,) = (
        each["spec"]["template"]
        for each in objects
        if each["kind"] == "Deployment" and each["metadata"]["name"] == "controller"
    )
    told = {each["name"]: each.get("value") for each in pod["spec"]["containers"][0]["env"]}
    assert told.get("MLOPS_ALERTMANAGER") == ("http://alertmanager:9093" if bundled else None)
    assert (("controller", "alertmanager", 9093) in matrix(objects)) == bundled
