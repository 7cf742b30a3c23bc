from pathlib import Path
from string import Template
from typing import Any

import pulumi_kubernetes as k8s

from infra.ports import PORTS
from infra.settings import LOAD_BALANCER
from infra.workload import Workload, container, port, probe

_CONFIG = Template((Path(__file__).parent / "haproxy.cfg").read_text("utf-8"))
_SLOTS = 20  # pods of the app that it can know at a time
_CALLERS, _OTHERS = 2048, 64  # connections: of callers, of probes and Prometheus
_SHARE = 512  # of them for one address: an Ingress is one
_BUFFER_KIB = 64  # the longest request that another pod is asked again, less 1 KiB for what HAProxy adds
_MEMORY_MIB = 64 + 3 * (_CALLERS + _OTHERS) * _BUFFER_KIB // 1024  # each connection takes three buffers at most


class Proxy(Workload):
    """Two HAProxy pods: the only way to the app."""

    in_request_path = True

    def create(self) -> None:
        number, metrics = PORTS["proxy"], PORTS["proxy-metrics"]
        service = f"serving.{self.settings.namespace}.svc.{self.settings.cluster.domain}"
        ports = {"port": number, "metrics_port": metrics, "serving_port": PORTS["serving"]}
        limits = {"callers": _CALLERS, "connections": _CALLERS + _OTHERS, "share": _SHARE, "buffer": _BUFFER_KIB * 1024}
        config = _CONFIG.substitute(slots=_SLOTS, service=service, **ports, **limits)
        self.service("http", node_port=self.settings.serving.node_port)
        self.service("metrics", "proxy-metrics", headless=True)
        self.volume("config", self.config_map(self.name, {"haproxy.cfg": config}))
        self.volume("scratch")
        haproxy = container(
            "haproxy",
            self.settings.images.third_party("haproxy"),
            cpu="50m",
            memory=f"{_MEMORY_MIB}Mi",
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
        if self.settings.load_balancer:
            prefix, class_ = "alb.ingress.kubernetes.io", LOAD_BALANCER
            about = {"target-type": "ip", "healthcheck-path": "/healthz", "listen-ports": '[{"HTTPS": 443}]'}
            metadata["annotations"] = {f"{prefix}/{name}": value for name, value in about.items()}
        spec |= {"ingress_class_name": class_} if class_ else {}
        spec |= {"tls": [{"hosts": [settings.host], "secret_name": settings.tls_secret}]} if settings.tls_secret else {}
        k8s.networking.v1.Ingress(self.name, metadata=metadata, spec=spec, opts=self.child)
