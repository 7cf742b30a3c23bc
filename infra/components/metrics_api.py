from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_kubernetes as k8s

from infra.components.proxy import METRICS_PORT
from infra.workload import container, env, metadata, pod, probe, scratch, selector, service, service_account

PORT = 6443
_GROUP = "custom.metrics.k8s.io"


@dataclass(frozen=True, kw_only=True)
class MetricsApiArgs:
    """`service`: whose requests in flight are asked for; `proxies`: the headless Service of what stands before it."""

    namespace: pulumi.Input[str]
    namespace_name: str
    image: str
    pull_secret: str
    service: str
    proxies: str


class MetricsApi(pulumi.ComponentResource):
    """Answers the HorizontalPodAutoscaler's question for requests in flight. One a cluster, since the custom metrics API is;
    where there is one: serving.metricsApi: existing, and the rule of monitoring/metrics-adapter.yaml."""

    def __init__(self, name: str, args: MetricsApiArgs, opts: pulumi.ResourceOptions | None = None):
        super().__init__("mlops:platform:MetricsApi", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        service_account(name, args.namespace, child)
        self.service = service(name, args.namespace, {"https": PORT}, child)
        health: Any = probe("/healthz", PORT, period_seconds=10)
        health["http_get"]["scheme"] = "HTTPS"
        told = {
            "SERVICE": args.service,
            "PROXIES": args.proxies,
            "PROXY_PORT": METRICS_PORT,
            "NAMESPACE": args.namespace_name,
            "PORT": PORT,
        }
        api = container(
            "api",
            args.image,
            cpu="20m",
            memory="256Mi",
            command=["python", "-m", "monitoring.metrics_api"],
            env=env(told),
            ports=[{"name": "https", "container_port": PORT}],
            mounts={"/tmp": "scratch"},  # noqa: S108
            readiness_probe=health,
            liveness_probe=health | {"failure_threshold": 6},
        )
        self.deployment = k8s.apps.v1.Deployment(
            name,
            metadata=metadata(name, args.namespace),
            spec={"replicas": 1, "selector": selector(name), "template": pod(name, [api], [scratch()], args.pull_secret)},
            opts=child,
        )
        _may_ask(f"{args.namespace_name}-{name}", args.service, child)
        k8s.apiregistration.v1.APIService(
            f"v1beta1.{_GROUP}",
            metadata={"name": f"v1beta1.{_GROUP}"},
            spec={
                "group": _GROUP,
                "version": "v1beta1",
                "service": {"name": name, "namespace": args.namespace, "port": PORT},
                "insecure_skip_tls_verify": True,  # it signs its own certificate at each start, and tells no secret
                "group_priority_minimum": 100,
                "version_priority": 100,
            },
            opts=pulumi.ResourceOptions(parent=self, depends_on=[self.deployment]),
        )
        self.register_outputs({})


def _may_ask(full: str, service: str, child: pulumi.ResourceOptions) -> None:
    rules: Any = [
        {"api_groups": [_GROUP], "resources": ["services/mlops_serving_in_flight"], "resource_names": [service], "verbs": ["get"]}
    ]
    k8s.rbac.v1.ClusterRole(full, metadata={"name": full}, rules=rules, opts=child)
    k8s.rbac.v1.ClusterRoleBinding(
        full,
        metadata={"name": full},
        role_ref={"api_group": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": full},
        subjects=[{"kind": "ServiceAccount", "name": "horizontal-pod-autoscaler", "namespace": "kube-system"}],
        opts=child,
    )
