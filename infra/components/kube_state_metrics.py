from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_kubernetes as k8s

from infra.workload import OPTIONAL, container, metadata, pod, probe, role, selector, service, service_account

PORT = 8080
_WATCHED = {
    "": ["pods", "persistentvolumeclaims"],
    "apps": ["deployments", "statefulsets"],
    "batch": ["jobs", "cronjobs"],
    "autoscaling": ["horizontalpodautoscalers"],
}


@dataclass(frozen=True, kw_only=True)
class KubeStateMetricsArgs:
    namespace: pulumi.Input[str]
    image: str


class KubeStateMetrics(pulumi.ComponentResource):
    """What Kubernetes knows of this namespace, and no other."""

    def __init__(self, name: str, args: KubeStateMetricsArgs, opts: pulumi.ResourceOptions | None = None):
        super().__init__("mlops:platform:KubeStateMetrics", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        service_account(name, args.namespace, child)
        rules: Any = [{"api_groups": [group], "resources": kinds, "verbs": ["list", "watch"]} for group, kinds in _WATCHED.items()]
        role(name, args.namespace, rules, child)
        self.service = service(name, args.namespace, {"http": PORT}, child, headless=True)
        watched = ",".join(kind for kinds in _WATCHED.values() for kind in kinds)
        exporter = container(
            "exporter",
            args.image,
            cpu="20m",
            memory="256Mi",
            args=[pulumi.Output.concat("--namespaces=", args.namespace), f"--resources={watched}", f"--port={PORT}"],
            ports=[{"name": "http", "container_port": PORT}],
            readiness_probe=probe("/metrics", PORT, period_seconds=10),
            liveness_probe=probe("/livez", PORT, period_seconds=30, failure_threshold=4),
        )
        self.deployment = k8s.apps.v1.Deployment(
            name,
            metadata=metadata(name, args.namespace, annotations=OPTIONAL),
            spec={"replicas": 1, "selector": selector(name), "template": pod(name, [exporter], automount_service_account_token=True)},
            opts=child,
        )
        self.register_outputs({})
