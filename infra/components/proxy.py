from pathlib import Path
from string import Template
from typing import Any

import pulumi_kubernetes as k8s

from infra.components.eks import INGRESS_CLASS
from infra.ports import PORTS
from infra.workload import Workload, container, port, probe

_CONFIG = Template((Path(__file__).parent / "haproxy.cfg").read_text("utf-8"))
_SLOTS = 20  # pods of the app that it can know at a time


class Proxy(Workload):
    """Two HAProxy pods: the only way to the app."""

    in_request_path = True

    def create(self) -> None:
        number, metrics = PORTS["proxy"], PORTS["proxy-metrics"]
        service = f"serving.{self.settings.namespace}.svc.{self.settings.cluster.domain}"
        ports = {"port": number, "metrics_port": metrics, "serving_port": PORTS["serving"]}
        config = _CONFIG.substitute(slots=_SLOTS, service=service, **ports)
        self.service("http", node_port=self.settings.serving.node_port)
        self.service("metrics", "proxy-metrics", headless=True)
        self.volume("config", self.config_map(self.name, {"haproxy.cfg": config}))
        self.volume("scratch")
        haproxy = container(
            "haproxy",
            self.settings.images.third_party("haproxy"),
            cpu="50m",
            memory="256Mi",
            command=["haproxy", "-W", "-db", "-f", "/etc/haproxy/haproxy.cfg"],
            ports=[port("http", number), port("metrics", metrics)],
            mounts={"/etc/haproxy": "config", "/tmp": "scratch"},
            readiness_probe=probe("/healthz", metrics, 2),
            liveness_probe=probe("/healthz", metrics, 10, 6),
            # New connections go elsewhere first; SIGUSR1 then lets open ones end by themselves.
            lifecycle={"pre_stop": {"exec": {"command": ["sh", "-c", "sleep 5; kill -USR1 1; sleep 5"]}}},
        )
        template = self.pod(haproxy, topology_spread_constraints=self.spread(), termination_grace_period_seconds=60)
        rolling = {"type": "RollingUpdate", "rolling_update": {"max_unavailable": 0, "max_surge": 1}}
        self.deployment(template, replicas=2, strategy=rolling)
        self.disruption_budget()
        if self.settings.ingress.enabled:
            self._ingress()

    def _ingress(self) -> None:
        settings = self.settings.ingress
        backend = {"service": {"name": self.name, "port": {"name": "http"}}}
        path = {"path": "/", "path_type": "Prefix", "backend": backend}
        spec: Any = {"rules": [{"host": settings.host, "http": {"paths": [path]}}]}
        metadata, class_ = self.metadata(), settings.class_
        if self.settings.on_aws and class_ in ("", INGRESS_CLASS):
            prefix, class_ = "alb.ingress.kubernetes.io", INGRESS_CLASS
            metadata["annotations"] = {f"{prefix}/target-type": "ip", f"{prefix}/healthcheck-path": "/healthz"}
        spec |= {"ingress_class_name": class_} if class_ else {}
        spec |= {"tls": [{"hosts": [settings.host], "secret_name": settings.tls_secret}]} if settings.tls_secret else {}
        k8s.networking.v1.Ingress(self.name, metadata=metadata, spec=spec, opts=self.child)
