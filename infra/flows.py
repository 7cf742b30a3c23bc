"""Who may talk to whom: the whole matrix, as docs/cluster.md shows it."""

from __future__ import annotations

from urllib.parse import urlsplit

from infra.components import (
    alertmanager,
    bucket,
    controller,
    database,
    kube_state_metrics,
    metrics_api,
    prometheus,
    proxy,
    serving,
    tracking,
)
from infra.components.network import ANYWHERE, API, Flow
from infra.settings import Settings

_API_PORTS = (443, 6443)  # of the Service, and of the server behind it


def flows(settings: Settings) -> list[Flow]:
    found = [
        Flow(ANYWHERE, "proxy", proxy.PORT),
        Flow("proxy", "serving", serving.PORT),
        Flow("controller", "proxy", proxy.PORT),
        *(Flow("setup-keys", API, port) for port in _API_PORTS),
    ]
    in_bucket = ["serving", "training", "controller", "tracking", "setup-bucket"]
    in_database = ["tracking", "controller", "setup-database", "database-tools"]
    in_tracking = ["training", "controller"]
    found += _to(in_bucket, settings.bucket.kind == "bundled", "bucket", bucket.PORT, settings.bucket.endpoint or "https://aws")
    outside = f"tcp://database:{settings.database.port}"
    found += _to(in_database, settings.database.kind == "bundled", "database", database.PORT, outside)
    found += _to(in_tracking, settings.tracking.kind == "bundled", "tracking", tracking.PORT, settings.tracking.url)
    found += [Flow("training", cidr, int(port)) for cidr, _, port in (e.rpartition(":") for e in settings.training.egress.split(",") if e)]
    if settings.serving.scale_on == "inFlight" and settings.serving.metrics_api == "bundled":
        found.append(Flow("metrics-api", "proxy", proxy.METRICS_PORT))
        found.append(Flow(ANYWHERE, "metrics-api", metrics_api.PORT))  # the API server has no address that a policy knows
    return found + _monitoring(settings)


def _to(sources: list[str], bundled: bool, target: str, port: int, outside: str) -> list[Flow]:
    """To what is in the cluster, or to wherever the address outside leads."""
    url = urlsplit(outside)
    if not bundled:
        target, port = ANYWHERE, url.port or (80 if url.scheme == "http" else 443)
    return [Flow(source, target, port) for source in sources]


def _monitoring(settings: Settings) -> list[Flow]:
    scraped = {"serving": serving.PORT, "proxy": proxy.METRICS_PORT, "controller": controller.PORT}
    if settings.monitoring.kind == "operator":
        return [Flow(f"namespace/{settings.monitoring.namespace}", target, port) for target, port in scraped.items()]
    if settings.monitoring.kind == "none":
        return []
    scraped |= {"alertmanager": alertmanager.PORT}
    found = [Flow("prometheus", target, port) for target, port in scraped.items()]
    if settings.kube_state_metrics.enabled:
        found.append(Flow("prometheus", "kube-state-metrics", kube_state_metrics.PORT))
        found += [Flow("kube-state-metrics", API, port) for port in _API_PORTS]
    found += [Flow("alertmanager", ANYWHERE, port) for port in _outside_ports(settings)]
    if settings.grafana.enabled:
        found.append(Flow("grafana", "prometheus", prometheus.PORT))
    return found


def _outside_ports(settings: Settings) -> list[int]:
    """Where alerts go."""
    alerts, ports = settings.alerts, set()
    for url in (alerts.webhook, alerts.heartbeat):
        if url:
            ports.add(urlsplit(url).port or (80 if url.startswith("http:") else 443))
    if alerts.smtp_host:
        ports.add(int(alerts.smtp_host.rpartition(":")[2]))
    if alerts.slack_channel:
        ports.add(443)
    return sorted(ports)
