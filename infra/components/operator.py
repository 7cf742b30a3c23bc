from typing import Any

import pulumi_kubernetes as k8s
import yaml

from infra.components.grafana import dashboards
from infra.components.prometheus import rules
from infra.workload import NAME, KubernetesComponent

# Service → name of its port
_SCRAPED = {"serving": "http", "proxy": "metrics", "controller": "metrics", "approver": "metrics"}


class OperatorObjects(KubernetesComponent):
    """For an existing Prometheus Operator: what to scrape, the rules, and dashboards for Grafana's sidecar."""

    def create(self) -> None:
        for service, port in _SCRAPED.items():
            endpoint = {"port": port, "interval": "15s"}
            # The name of the workload is the name of the job, as in the bundled Prometheus.
            spec = {"jobLabel": NAME, "selector": {"matchLabels": {NAME: service}}, "endpoints": [endpoint]}
            self._custom("ServiceMonitor", service, spec)
        for file, text in rules().items():
            if file != "platform.yaml":  # an operator's Prometheus has its own rules for the whole cluster
                self._custom("PrometheusRule", file.removesuffix(".yaml"), yaml.safe_load(text))
        for file, text in dashboards().items() if self.settings.grafana.enabled else ():
            self.config_map(f"dashboard-{file.removesuffix('.json')}", {file: text}, grafana_dashboard="1")

    def _custom(self, kind: str, name: str, spec: Any) -> None:
        metadata = self.metadata(name)
        metadata["labels"] |= {NAME: name, **self.settings.monitoring.selected}
        version = "monitoring.coreos.com/v1"
        full = f"{kind}-{name}"
        k8s.apiextensions.CustomResource(full, version, kind, metadata=metadata, spec=spec, opts=self.child)
