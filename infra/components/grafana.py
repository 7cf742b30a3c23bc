from __future__ import annotations

from dataclasses import dataclass

import pulumi
import pulumi_kubernetes as k8s

from infra.components.prometheus import FILES
from infra.workload import OPTIONAL, config_map, container, env, files, metadata, pod, probe, scratch, selector, service, service_account

PORT = 3000
_GRAFANA_USER = 472  # of the image


def dashboards() -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted((FILES / "grafana" / "dashboards").glob("*.json"))}


@dataclass(frozen=True, kw_only=True)
class GrafanaArgs:
    namespace: pulumi.Input[str]
    image: str


class Grafana(pulumi.ComponentResource):
    """Dashboards from files; what somebody changes in the browser is gone with the pod."""

    def __init__(self, name: str, args: GrafanaArgs, opts: pulumi.ResourceOptions | None = None):
        super().__init__("mlops:platform:Grafana", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        service_account(name, args.namespace, child)
        self.service = service(name, args.namespace, {"http": PORT}, child)
        provisioning = {kind: (FILES / "grafana" / f"{kind}.yaml").read_text() for kind in ("datasource", "provider")}
        datasources = config_map(f"{name}-datasources", args.namespace, {"prometheus.yaml": provisioning["datasource"]}, child)
        providers = config_map(f"{name}-providers", args.namespace, {"files.yaml": provisioning["provider"]}, child)
        boards = config_map(f"{name}-dashboards", args.namespace, dashboards(), child)
        server = container(
            "grafana",
            args.image,
            cpu="50m",
            memory="512Mi",
            env=env(
                {
                    "GF_ANALYTICS_REPORTING_ENABLED": "false",
                    "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
                    "GF_ANALYTICS_CHECK_FOR_PLUGIN_UPDATES": "false",
                    "GF_PLUGINS_PREINSTALL_DISABLED": "true",
                    "GF_USERS_ALLOW_SIGN_UP": "false",
                },
                {"GF_SECURITY_ADMIN_PASSWORD": ("grafana", "password")},
            ),
            ports=[{"name": "http", "container_port": PORT}],
            mounts={
                "/var/lib/grafana": "data",
                "/tmp": "scratch",  # noqa: S108
                "/etc/grafana/provisioning/datasources": "datasources",
                "/etc/grafana/provisioning/dashboards": "providers",
                "/etc/dashboards": "dashboards",
            },
            startup_probe=probe("/api/health", PORT, period_seconds=3, failure_threshold=60),
            readiness_probe=probe("/api/health", PORT, period_seconds=10),
            liveness_probe=probe("/api/health", PORT, period_seconds=30, failure_threshold=4),
        )
        volumes = [
            scratch("data"),
            scratch(),
            files("datasources", datasources),
            files("providers", providers),
            files("dashboards", boards),
        ]
        self.deployment = k8s.apps.v1.Deployment(
            name,
            metadata=metadata(name, args.namespace, annotations=OPTIONAL),
            spec={"replicas": 1, "selector": selector(name), "template": pod(name, [server], volumes, user=_GRAFANA_USER)},
            opts=child,
        )
        self.register_outputs({})
