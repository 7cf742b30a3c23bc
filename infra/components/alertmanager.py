from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_kubernetes as k8s
import yaml

from infra.components.prometheus import FILES
from infra.settings import Alerts
from infra.workload import config_map, container, files, metadata, pod, probe, scratch, selector, service, service_account

PORT = 9093
_SECRETS = "/etc/alertmanager-secrets"
_TEMPLATES = "/usr/share/prometheus/alertmanager"  # where Debian's build looks for its own, and cannot start without


@dataclass(frozen=True, kw_only=True)
class AlertmanagerArgs:
    namespace: pulumi.Input[str]
    image: str
    alerts: Alerts


class Alertmanager(pulumi.ComponentResource):
    def __init__(self, name: str, args: AlertmanagerArgs, opts: pulumi.ResourceOptions | None = None):
        super().__init__("mlops:platform:Alertmanager", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        service_account(name, args.namespace, child)
        self.service = service(name, args.namespace, {"http": PORT}, child)
        config = config_map(name, args.namespace, {"alertmanager.yaml": configuration(args.alerts)}, child)
        templates = {file.name: file.read_text() for file in sorted((FILES / "alertmanager" / "templates").glob("*.tmpl"))}
        texts = config_map(f"{name}-templates", args.namespace, templates, child)
        secrets: list[Any] = [{"name": "secrets", "secret": {"secret_name": args.alerts.secret}}] if args.alerts.secret else []
        server = container(
            "alertmanager",
            args.image,
            cpu="20m",
            memory="128Mi",
            command=[
                "/bin/alertmanager",
                "--config.file=/etc/alertmanager/alertmanager.yaml",
                "--storage.path=/data",
                "--cluster.listen-address=",
            ],
            ports=[{"name": "http", "container_port": PORT}],
            mounts={"/etc/alertmanager": "config", _TEMPLATES: "templates", "/data": "data", **({_SECRETS: "secrets"} if secrets else {})},
            readiness_probe=probe("/-/ready", PORT, period_seconds=5),
            liveness_probe=probe("/-/healthy", PORT, period_seconds=15, failure_threshold=6),
        )
        self.deployment = k8s.apps.v1.Deployment(
            name,
            metadata=metadata(name, args.namespace),
            spec={
                "replicas": 1,
                "selector": selector(name),
                "strategy": {"type": "Recreate"},
                "template": pod(name, [server], [files("config", config), files("templates", texts), scratch("data"), *secrets]),
            },
            opts=child,
        )
        self.register_outputs({})


def configuration(alerts: Alerts) -> str:
    """The routes of monitoring/alertmanager/alertmanager.yaml, and the receivers that the settings name."""
    config = yaml.safe_load((FILES / "alertmanager" / "alertmanager.yaml").read_text())
    people: dict[str, Any] = {}
    if alerts.slack_channel:
        text = {"title": '{{ template "mlops.title" . }}', "text": '{{ template "mlops.text" . }}'}
        slack = {"channel": alerts.slack_channel, "api_url_file": f"{_SECRETS}/slack-url", "send_resolved": True}
        people["slack_configs"] = [slack | text]
    if alerts.email_to:
        text = {"headers": {"Subject": '{{ template "mlops.title" . }}'}, "html": '{{ template "mlops.html" . }}'}
        password = {"auth_username": alerts.email_from, "auth_password_file": f"{_SECRETS}/smtp-password"}
        email = {"to": alerts.email_to, "from": alerts.email_from, "smarthost": alerts.smtp_host, "send_resolved": True}
        people["email_configs"] = [email | password | text]
    if alerts.webhook:
        people["webhook_configs"] = [_address("webhook", alerts.webhook) | {"send_resolved": True}]
    heartbeat = {"webhook_configs": [_address("heartbeat", alerts.heartbeat)]} if alerts.heartbeat else {}
    config["templates"] = [f"{_TEMPLATES}/*.tmpl"]
    config["receivers"] = [{"name": "nobody"}, {"name": "people", **people}, {"name": "heartbeat", **heartbeat}]
    return yaml.safe_dump(config, sort_keys=False)


def _address(name: str, url: str) -> dict[str, Any]:
    return {"url_file": f"{_SECRETS}/{name}-url"} if url == "secret" else {"url": url}
