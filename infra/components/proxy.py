from __future__ import annotations

from typing import Any

import pulumi_kubernetes as k8s

from infra.ports import PORTS
from infra.workload import Workload, container, port, probe

_SLOTS = 20  # pods of the app that it can know at a time

# A pod that dies loses no request: what it had not answered is sent to another one. A prediction changes nothing, so
# repeating it is safe. A response of 503 means "not me": no model yet, or overloaded. A request is passed on once its body
# is here (16 KiB of it): HAProxy keeps no copy of one that was passed on in parts.
_CONFIG = """\
global
  maxconn 4096
  hard-stop-after 30s

# Its resolver knows no search domains, so names are whole.
resolvers cluster
  parse-resolv-conf
  hold valid 1s
  hold obsolete 10s
  hold nx 10s
  hold timeout 30s
  hold refused 30s
  timeout resolve 1s
  timeout retry 1s

defaults
  mode http
  timeout connect 500ms
  timeout client 60s
  timeout server 30s
  timeout http-request 10s
  timeout http-keep-alive 30s
  option http-server-close
  option http-buffer-request
  option redispatch 1
  retries 3
  retry-on conn-failure empty-response 503

frontend predictions
  bind :{port}
  use_backend outcomes if {{ path /outcomes }}
  default_backend serving

backend serving
  balance leastconn
  option httpchk GET /readyz
  http-check expect status 200
  default-server check inter 1s fastinter 250ms downinter 1s fall 2 rise 1 observe layer4 error-limit 1 on-error mark-down
  default-server resolvers cluster resolve-prefer ipv4 init-addr none
  server-template pod {slots} {service}:{serving_port}

backend outcomes
  # An outcome is written once it was accepted: repeated only if no pod was reached.
  retry-on conn-failure
  option httpchk GET /readyz
  http-check expect status 200
  default-server check inter 1s fall 2 rise 1 resolvers cluster resolve-prefer ipv4 init-addr none
  server-template pod {slots} {service}:{serving_port}

frontend metrics
  bind :{metrics_port}
  http-request use-service prometheus-exporter if {{ path /metrics }}
  http-request return status 200 if {{ path /healthz }}
"""


class Proxy(Workload):
    """Two HAProxy pods: the only way to the app."""

    in_request_path = True

    def create(self) -> None:
        number, metrics = PORTS["proxy"], PORTS["proxy-metrics"]
        service = f"serving.{self.settings.namespace}.svc.{self.settings.cluster.domain}"
        ports = {"port": number, "metrics_port": metrics, "serving_port": PORTS["serving"]}
        config = _CONFIG.format(slots=_SLOTS, service=service, **ports)
        self.service_account()
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
        spread = {"topology_spread_constraints": self.spread(), "termination_grace_period_seconds": 60}
        rolling = {"type": "RollingUpdate", "rolling_update": {"max_unavailable": 0, "max_surge": 1}}
        self.deployment(self.pod(haproxy, **spread), replicas=2, strategy=rolling)
        self.disruption_budget()
        if self.settings.ingress.enabled:
            self._ingress()

    def _ingress(self) -> None:
        settings = self.settings.ingress
        backend = {"service": {"name": self.name, "port": {"name": "http"}}}
        path = {"path": "/", "path_type": "Prefix", "backend": backend}
        spec: Any = {"rules": [{"host": settings.host, "http": {"paths": [path]}}]}
        spec |= {"ingress_class_name": settings.class_} if settings.class_ else {}
        spec |= {"tls": [{"hosts": [settings.host], "secret_name": settings.tls_secret}]} if settings.tls_secret else {}
        k8s.networking.v1.Ingress(self.name, metadata=self.metadata(), spec=spec, opts=self.child)
