from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_kubernetes as k8s
import yaml

from infra.components.grafana import dashboards
from infra.components.prometheus import rules
from infra.workload import NAME, hashed, labels, metadata

_API = "monitoring.coreos.com/v1"


@dataclass(frozen=True, kw_only=True)
class OperatorObjectsArgs:
    """`scraped`: Service → name of its port; `labels`: by which the operator's Prometheus selects."""

    namespace: pulumi.Input[str]
    scraped: dict[str, str]
    labels: dict[str, str]
    dashboards: bool


class OperatorObjects(pulumi.ComponentResource):
    """For a Prometheus Operator that is there: what to scrape, the rules, and dashboards for Grafana's sidecar."""

    def __init__(self, name: str, args: OperatorObjectsArgs, opts: pulumi.ResourceOptions | None = None):
        super().__init__("mlops:platform:OperatorObjects", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)

        def custom(kind: str, full: str, spec: Any) -> None:
            meta: Any = {"name": full, "namespace": args.namespace, "labels": labels(full) | args.labels}
            k8s.apiextensions.CustomResource(f"{kind}-{full}", api_version=_API, kind=kind, metadata=meta, spec=spec, opts=child)

        for service, port in args.scraped.items():
            endpoint = {"port": port, "interval": "15s"}
            # The name of the workload is the name of the job, as in the bundled Prometheus.
            custom("ServiceMonitor", service, {"jobLabel": NAME, "selector": {"matchLabels": {NAME: service}}, "endpoints": [endpoint]})
        for file, text in rules().items():
            if file == "platform.yaml":
                continue  # an operator's Prometheus has rules of its own for what it sees of the whole cluster
            custom("PrometheusRule", file.removesuffix(".yaml"), yaml.safe_load(text))
        for file, text in dashboards().items() if args.dashboards else ():
            full = hashed(f"dashboard-{file.removesuffix('.json')}", text)
            meta = metadata(full, args.namespace) | {"labels": labels(full, grafana_dashboard="1")}
            k8s.core.v1.ConfigMap(full, metadata=meta, data={file: text}, immutable=True, opts=child)
        self.register_outputs({})
