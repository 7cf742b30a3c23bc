from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_kubernetes as k8s

from infra.components.prometheus import FILES
from infra.workload import config_map, container, files, metadata, pod, probe, scratch, selector, service, service_account

PORT = 6443
_GROUP = "custom.metrics.k8s.io"
_RBAC = "rbac.authorization.k8s.io"


@dataclass(frozen=True, kw_only=True)
class MetricsAdapterArgs:
    namespace: pulumi.Input[str]
    namespace_name: str
    image: str


class MetricsAdapter(pulumi.ComponentResource):
    """prometheus-adapter: answers the HorizontalPodAutoscaler's question for requests in flight. One a cluster, since the
    custom metrics API is; where there is one: serving.metricsApi: existing, and the rule of monitoring/metrics-adapter.yaml."""

    def __init__(self, name: str, args: MetricsAdapterArgs, opts: pulumi.ResourceOptions | None = None):
        super().__init__("mlops:platform:MetricsAdapter", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        service_account(name, args.namespace, child)
        self.service = service(name, args.namespace, {"https": PORT}, child)
        rights = _rights(f"{args.namespace_name}-{name}", name, args.namespace, child)
        config = config_map(name, args.namespace, {"config.yaml": (FILES / "metrics-adapter.yaml").read_text()}, child)
        health: Any = probe("/readyz", PORT, period_seconds=10)
        health["http_get"]["scheme"] = "HTTPS"
        adapter = container(
            "adapter",
            args.image,
            cpu="50m",
            memory="256Mi",
            args=[
                "--prometheus-url=http://prometheus:9090",
                "--config=/etc/adapter/config.yaml",
                f"--secure-port={PORT}",
                "--cert-dir=/certificates",
                "--metrics-relist-interval=15s",
            ],
            ports=[{"name": "https", "container_port": PORT}],
            mounts={"/etc/adapter": "config", "/certificates": "scratch"},
            startup_probe=health | {"period_seconds": 2, "failure_threshold": 60},
            readiness_probe=health,
            liveness_probe=health | {"http_get": health["http_get"] | {"path": "/livez"}, "failure_threshold": 6},
        )
        template = pod(name, [adapter], [files("config", config), scratch()], automount_service_account_token=True)
        self.deployment = k8s.apps.v1.Deployment(
            name,
            metadata=metadata(name, args.namespace),
            spec={"replicas": 1, "selector": selector(name), "template": template},
            opts=pulumi.ResourceOptions(parent=self, depends_on=rights),
        )
        k8s.apiregistration.v1.APIService(
            f"v1beta1.{_GROUP}",
            metadata={"name": f"v1beta1.{_GROUP}"},
            spec={
                "group": _GROUP,
                "version": "v1beta1",
                "service": {"name": name, "namespace": args.namespace, "port": PORT},
                "insecure_skip_tls_verify": True,  # it signs its own certificate at each start
                "group_priority_minimum": 100,
                "version_priority": 100,
            },
            opts=pulumi.ResourceOptions(parent=self, depends_on=[self.deployment]),
        )
        self.register_outputs({})


def _rights(full: str, name: str, namespace: pulumi.Input[str], child: pulumi.ResourceOptions) -> list[pulumi.Resource]:
    """To be asked through the API server, to see which objects a metric is of; and for the autoscaler, to ask."""
    subject: Any = {"kind": "ServiceAccount", "name": name, "namespace": namespace}
    autoscaler = {"kind": "ServiceAccount", "name": "horizontal-pod-autoscaler", "namespace": "kube-system"}
    reads: Any = [{"api_groups": [""], "resources": ["namespaces", "pods", "services"], "verbs": ["get", "list", "watch"]}]
    asks: Any = [{"api_groups": [_GROUP], "resources": ["services/mlops_serving_in_flight"], "verbs": ["get", "list"]}]
    made: list[pulumi.Resource] = []
    for role, rules, who in (("reads", reads, subject), ("asks", asks, autoscaler)):
        made.append(k8s.rbac.v1.ClusterRole(f"{full}-{role}", metadata={"name": f"{full}-{role}"}, rules=rules, opts=child))
        made.append(_bind(f"{full}-{role}", f"{full}-{role}", who, child))
    made.append(_bind(f"{full}-delegates", "system:auth-delegator", subject, child))
    made.append(
        k8s.rbac.v1.RoleBinding(
            f"{full}-authentication",
            metadata={"name": f"{full}-authentication", "namespace": "kube-system"},
            role_ref={"api_group": _RBAC, "kind": "Role", "name": "extension-apiserver-authentication-reader"},
            subjects=[subject],
            opts=child,
        )
    )
    return made


def _bind(full: str, role: str, subject: Any, child: pulumi.ResourceOptions) -> pulumi.Resource:
    return k8s.rbac.v1.ClusterRoleBinding(
        full, metadata={"name": full}, role_ref={"api_group": _RBAC, "kind": "ClusterRole", "name": role}, subjects=[subject], opts=child
    )
