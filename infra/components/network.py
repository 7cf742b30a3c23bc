import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pulumi_kubernetes as k8s

from infra.ports import PORTS
from infra.settings import LINK_LOCAL, Settings
from infra.workload import NAME, KubernetesComponent, without_none

ANYWHERE, API = "anywhere", "the Kubernetes API"
DNS = [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]
_API_PORTS = (443, 6443)  # of the Service, and of the server behind it
_POD_IDENTITY = "169.254.170.23/32"  # EKS gives a pod its AWS credentials there
_OUTSIDE = "0.0.0.0/0"
# On EKS the resolver is no pod but a service of each node, behind one of these: 10 in the range that EKS took for Services.
_EKS_DNS = ("172.20.0.10/32", "10.100.0.10/32")


@dataclass(frozen=True)
class Flow:
    """`source` may open connections to `target` on `port`; each is a workload, `anywhere`, the API, a CIDR, or
    namespace/NAME: another namespace as a whole."""

    source: str
    target: str
    port: int


class Network(KubernetesComponent):
    """Only these connections, and DNS, are allowed."""

    def create(self) -> None:
        dns = {"to": _dns(self.settings), "ports": DNS}
        everyone = {"pod_selector": {}, "policy_types": ["Ingress", "Egress"], "egress": [dns]}
        self._policy("default-deny", everyone)
        allowed = flows(self.settings)
        ends = {end for flow in allowed for end in (flow.source, flow.target)}
        for workload in sorted(end for end in ends if end not in (ANYWHERE, API) and "/" not in end):
            ingress = [{"from": _peers(f.source), "ports": _ports(f)} for f in allowed if f.target == workload]
            egress = [{"to": _peers(f.target), "ports": _ports(f)} for f in allowed if f.source == workload]
            spec = {"pod_selector": {"match_labels": {NAME: workload}}, "policy_types": ["Ingress", "Egress"]}
            spec |= without_none({"ingress": ingress or None, "egress": egress or None})
            self._policy(workload, spec)

    def _policy(self, name: str, spec: Any) -> None:
        metadata = self.metadata(name)
        metadata["labels"][NAME] = name
        k8s.networking.v1.NetworkPolicy(name, metadata=metadata, spec=spec, opts=self.child)


def flows(settings: Settings) -> list[Flow]:
    """The whole matrix, as docs/cluster.md shows it."""
    kinds = ("bucket", "database", "tracking", "monitoring")
    bundled = {kind: getattr(settings, kind).kind == "bundled" for kind in kinds}
    outside = {"bucket": settings.bucket.endpoint or "https://aws", "tracking": settings.tracking.url}
    outside["database"] = f"tcp://database:{settings.database.port}"
    users = {
        "bucket": ["serving", "training", "controller", "approver", "tracking", "setup-bucket"],
        "database": ["tracking", "controller", "setup-database"],
        "tracking": ["training", "controller"],
    }
    found = [Flow(ANYWHERE, "proxy", PORTS["proxy"]), Flow("proxy", "serving", PORTS["serving"])]
    found += [Flow("controller", "proxy", PORTS["proxy"]), *_to_api("setup-keys")]
    for target, sources in users.items():
        end, port = (target, PORTS[target]) if bundled[target] else (ANYWHERE, _port_of(outside[target]))
        found += [Flow(source, end, port) for source in sources]
    if settings.on_aws:
        identities = {source for target in ("bucket", "database") for source in users[target]} | {"setup-keys"}
        found += [Flow(source, _POD_IDENTITY, 80) for source in sorted(identities)]
        found.append(Flow("setup-database", ANYWHERE, 443))  # Secrets Manager
    for address in filter(None, settings.training.egress.split(",")):
        cidr, _, port = address.rpartition(":")
        found.append(Flow("training", cidr, int(port)))
    scraped = {name: PORTS[name] for name in ("serving", "controller", "approver")} | {"proxy": PORTS["proxy-metrics"]}
    if settings.monitoring.kind == "operator":
        found += [Flow(f"namespace/{settings.monitoring.namespace}", *target) for target in scraped.items()]
    return found + (_monitoring(settings, scraped) if bundled["monitoring"] else [])


def _monitoring(settings: Settings, scraped: dict[str, int]) -> list[Flow]:
    scraped = scraped | {"alertmanager": PORTS["alertmanager"]}
    found = [Flow("prometheus", *target) for target in scraped.items()]
    found.append(Flow("controller", "alertmanager", PORTS["alertmanager"]))
    if settings.kube_state_metrics.enabled:
        found.append(Flow("prometheus", "kube-state-metrics", PORTS["kube-state-metrics"]))
        found += _to_api("kube-state-metrics")
    found += [Flow("alertmanager", ANYWHERE, port) for port in _receiver_ports(settings)]
    if settings.grafana.enabled:
        found.append(Flow("grafana", "prometheus", PORTS["prometheus"]))
    if settings.serving.scale_on == "keda":
        found.append(Flow("namespace/keda", "prometheus", PORTS["prometheus"]))
    return found


def _to_api(workload: str) -> list[Flow]:
    return [Flow(workload, API, port) for port in _API_PORTS]


def _port_of(address: str) -> int:
    url = urlsplit(address)
    return url.port or (80 if url.scheme == "http" else 443)


def _receiver_ports(settings: Settings) -> Iterable[int]:
    """Where alerts are sent."""
    alerts = settings.alerts
    ports = {_port_of(url) for url in (alerts.webhook, alerts.heartbeat) if url}
    ports |= {int(alerts.smtp_host.rpartition(":")[2])} if alerts.smtp_host else set()
    return sorted(ports | ({443} if alerts.slack_channel else set()))


def _peers(end: str) -> list[Any]:
    if end in (ANYWHERE, API):
        return [_block(_OUTSIDE)]
    if end.startswith("namespace/"):
        labels = {"kubernetes.io/metadata.name": end.removeprefix("namespace/")}
        return [{"namespace_selector": {"match_labels": labels}}]
    return [_block(end) if "/" in end else {"pod_selector": {"match_labels": {NAME: end}}}]


def _block(cidr: str) -> Any:
    """But not the node's credentials."""
    around = ipaddress.IPv4Network(cidr).supernet_of(LINK_LOCAL)
    return {"ip_block": {"cidr": cidr} | ({"except": [str(LINK_LOCAL)]} if around else {})}


def _dns(settings: Settings) -> list[Any]:
    """A question in DNS can carry data to whoever answers: only the cluster's own resolver may be asked."""
    labels, addresses = {"k8s-app": "kube-dns"}, filter(None, settings.cluster.dns.split(","))
    pods = {"pod_selector": {"match_labels": labels}, **_peers("namespace/kube-system")[0]}
    return [pods, *(_block(each) for each in (*(_EKS_DNS if settings.on_aws else ()), *addresses))]


def _ports(flow: Flow) -> list[Any]:
    return [{"port": flow.port, "protocol": "TCP"}]
