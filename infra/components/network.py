from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_kubernetes as k8s

from infra.workload import NAME, metadata

ANYWHERE, API = "anywhere", "the Kubernetes API"
DNS = [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]
_OUTSIDE = {"ip_block": {"cidr": "0.0.0.0/0", "except": ["169.254.169.254/32"]}}  # but not the credentials of the node


@dataclass(frozen=True)
class Flow:
    """`source` may open connections to `target` on `port`; each is a workload, `anywhere`, the API, a CIDR, or
    namespace/NAME: another namespace as a whole."""

    source: str
    target: str
    port: int


@dataclass(frozen=True, kw_only=True)
class NetworkArgs:
    namespace: pulumi.Input[str]
    flows: list[Flow]


class Network(pulumi.ComponentResource):
    """Nobody talks to anybody but by these flows (and to DNS)."""

    def __init__(self, name: str, args: NetworkArgs, opts: pulumi.ResourceOptions | None = None):
        super().__init__("mlops:platform:Network", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        everyone: Any = {"pod_selector": {}, "policy_types": ["Ingress", "Egress"], "egress": [{"ports": DNS}]}
        _policy("default-deny", args.namespace, everyone, child)
        ends = {end for flow in args.flows for end in (flow.source, flow.target)}
        for workload in sorted(end for end in ends if _is_workload(end)):
            spec: Any = {
                "pod_selector": {"match_labels": {NAME: workload}},
                "policy_types": ["Ingress", "Egress"],
                "ingress": [{"from": _peers(f.source), "ports": [_port(f)]} for f in args.flows if f.target == workload],
                "egress": [{"to": _peers(f.target), "ports": [_port(f)]} for f in args.flows if f.source == workload],
            }
            _policy(workload, args.namespace, {key: value for key, value in spec.items() if value}, child)
        self.register_outputs({})


def _policy(name: str, namespace: pulumi.Input[str], spec: Any, child: pulumi.ResourceOptions) -> None:
    k8s.networking.v1.NetworkPolicy(name, metadata=metadata(name, namespace), spec=spec, opts=child)


def _is_workload(end: str) -> bool:
    return end not in (ANYWHERE, API) and "/" not in end


def _peers(end: str) -> list[Any]:
    if end in (ANYWHERE, API):
        return [_OUTSIDE]
    if end.startswith("namespace/"):
        return [{"namespace_selector": {"match_labels": {"kubernetes.io/metadata.name": end.removeprefix("namespace/")}}}]
    if "/" in end:
        return [{"ip_block": {"cidr": end}}]
    return [{"pod_selector": {"match_labels": {NAME: end}}}]


def _port(flow: Flow) -> Any:
    return {"port": flow.port, "protocol": "TCP"}
