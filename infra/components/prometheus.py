from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pulumi

from infra.workload import config_map, container, files, pod, probe, scratch, service, service_account, stateful_set

PORT = 9090
FILES = Path(__file__).resolve().parents[2] / "monitoring"


def rules() -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted((FILES / "prometheus" / "rules").glob("*.yaml"))}


@dataclass(frozen=True, kw_only=True)
class PrometheusArgs:
    namespace: pulumi.Input[str]
    namespace_name: str
    image: str
    retention: str
    size: str
    storage_class: str


class Prometheus(pulumi.ComponentResource):
    """Finds the pods by DNS, so it needs no rights in the cluster."""

    def __init__(self, name: str, args: PrometheusArgs, opts: pulumi.ResourceOptions | None = None):
        super().__init__("mlops:platform:Prometheus", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        service_account(name, args.namespace, child)
        self.service = service(name, args.namespace, {"http": PORT}, child)
        text = (FILES / "prometheus" / "prometheus.yaml").read_text().replace("$NAMESPACE", args.namespace_name)
        config = config_map(name, args.namespace, {"prometheus.yaml": text}, child)
        rule_files = config_map(f"{name}-rules", args.namespace, rules(), child)
        server = container(
            "prometheus",
            args.image,
            cpu="100m",
            memory="1Gi",
            command=["/bin/prometheus", "--config.file=/etc/prometheus/prometheus.yaml", "--storage.tsdb.path=/data"],
            args=[f"--storage.tsdb.retention.time={args.retention}"],
            ports=[{"name": "http", "container_port": PORT}],
            mounts={"/data": "data", "/etc/prometheus": "config", "/etc/prometheus-rules": "rules", "/tmp": "scratch"},  # noqa: S108
            startup_probe=probe("/-/ready", PORT, period_seconds=2, failure_threshold=150),
            readiness_probe=probe("/-/ready", PORT, period_seconds=5),
            liveness_probe=probe("/-/healthy", PORT, period_seconds=15, failure_threshold=6),
        )
        volumes: list[Any] = [files("config", config), files("rules", rule_files), scratch()]
        template = pod(name, [server], volumes, termination_grace_period_seconds=60)
        self.stateful_set = stateful_set(name, args.namespace, template, args.size, args.storage_class, child)
        self.register_outputs({})
