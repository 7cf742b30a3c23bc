from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_kubernetes as k8s

from infra.components.serving import PORT as SERVING_PORT
from infra.workload import NAME, config_map, container, files, metadata, pod, probe, scratch, selector, service, service_account, spread

PORT = 8080
METRICS_PORT = 8405
_SLOTS = 20  # pods of the app that it can know at a time

# A pod that dies takes no request with it: what it had not answered is asked of another one. A prediction changes
# nothing, so asking twice is safe. An answer of 503 is the app's "not me": no model yet, or overloaded. A request is
# passed on once its body is here (16 KiB of it): of what went out in parts HAProxy keeps no copy to ask again with.
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
  # What an outcome says is written once it was taken: asked again only where no pod was reached.
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


@dataclass(frozen=True, kw_only=True)
class ProxyArgs:
    """`service`: the headless Service whose pods answer, by its whole name."""

    namespace: pulumi.Input[str]
    image: str
    service: str
    node_port: int
    ingress_class: str
    ingress_host: str
    ingress_tls_secret: str


class Proxy(pulumi.ComponentResource):
    """Two HAProxy pods: the one way to the app."""

    def __init__(self, name: str, args: ProxyArgs, opts: pulumi.ResourceOptions | None = None):
        super().__init__("mlops:platform:Proxy", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        service_account(name, args.namespace, child)
        self.service = service(name, args.namespace, {"http": PORT}, child, node_port=args.node_port)
        service(f"{name}-metrics", args.namespace, {"metrics": METRICS_PORT}, child, headless=True, of=name)
        text = _CONFIG.format(port=PORT, metrics_port=METRICS_PORT, slots=_SLOTS, service=args.service, serving_port=SERVING_PORT)
        config = config_map(name, args.namespace, {"haproxy.cfg": text}, child)
        haproxy = container(
            "haproxy",
            args.image,
            cpu="50m",
            memory="256Mi",
            command=["haproxy", "-W", "-db", "-f", "/etc/haproxy/haproxy.cfg"],
            ports=[{"name": "http", "container_port": PORT}, {"name": "metrics", "container_port": METRICS_PORT}],
            mounts={"/etc/haproxy": "config", "/tmp": "scratch"},  # noqa: S108
            readiness_probe=probe("/healthz", METRICS_PORT, period_seconds=2),
            liveness_probe=probe("/healthz", METRICS_PORT, period_seconds=10, failure_threshold=6),
            # New connections go elsewhere first; SIGUSR1 then lets those that are open end by themselves.
            lifecycle={"pre_stop": {"exec": {"command": ["sh", "-c", "sleep 5; kill -USR1 1; sleep 5"]}}},
        )
        template = pod(
            name,
            [haproxy],
            [files("config", config), scratch()],
            topology_spread_constraints=spread(name),
            termination_grace_period_seconds=60,
        )
        self.deployment = k8s.apps.v1.Deployment(
            name,
            metadata=metadata(name, args.namespace),
            spec={
                "replicas": 2,
                "selector": selector(name),
                "strategy": {"type": "RollingUpdate", "rolling_update": {"max_unavailable": 0, "max_surge": 1}},
                "template": template,
            },
            opts=child,
        )
        k8s.policy.v1.PodDisruptionBudget(
            name,
            metadata=metadata(name, args.namespace),
            spec={"max_unavailable": 1, "selector": {"match_labels": {NAME: name}}},
            opts=child,
        )
        if args.ingress_host:
            k8s.networking.v1.Ingress(name, metadata=metadata(name, args.namespace), spec=_ingress(name, args), opts=child)
        self.register_outputs({})


def _ingress(name: str, args: ProxyArgs) -> Any:
    backend = {"service": {"name": name, "port": {"name": "http"}}}
    rule = {"host": args.ingress_host, "http": {"paths": [{"path": "/", "path_type": "Prefix", "backend": backend}]}}
    return {
        "rules": [rule],
        **({"ingress_class_name": args.ingress_class} if args.ingress_class else {}),
        **({"tls": [{"hosts": [args.ingress_host], "secret_name": args.ingress_tls_secret}]} if args.ingress_tls_secret else {}),
    }
