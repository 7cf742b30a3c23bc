from typing import Any

import yaml

from infra.components.prometheus import FILES
from infra.ports import PORTS
from infra.settings import Alerts
from infra.workload import Workload, container, port, probe

_SECRETS = "/etc/alertmanager-secrets"
_TEMPLATES = "/usr/share/prometheus/alertmanager"  # where Debian's build looks for its own, and does not start without


class Alertmanager(Workload):
    def create(self) -> None:
        alerts, number = self.settings.alerts, PORTS["alertmanager"]
        texts = {
            file.name: file.read_text("utf-8") for file in sorted((FILES / "alertmanager" / "templates").glob("*.tmpl"))
        }
        self.service("http")
        self.volume("config", self.config_map(self.name, {"alertmanager.yaml": configuration(alerts)}))
        self.volume("templates", self.config_map(f"{self.name}-templates", texts))
        self.volume("data")
        mounts = {"/etc/alertmanager": "config", _TEMPLATES: "templates", "/data": "data"}
        if alerts.secret:
            self.volume("secrets", {"secret": {"secret_name": alerts.secret}})
            mounts[_SECRETS] = "secrets"
        options = ["--config.file=/etc/alertmanager/alertmanager.yaml", "--storage.path=/data"]
        server = container(
            "alertmanager",
            self.settings.images.third_party("alertmanager"),
            cpu="20m",
            memory="128Mi",
            command=["/bin/alertmanager", *options, "--cluster.listen-address="],
            ports=[port("http", number)],
            mounts=mounts,
            readiness_probe=probe("/-/ready", number, 5),
            liveness_probe=probe("/-/healthy", number, 15, 6),
        )
        self.deployment(self.pod(server), strategy={"type": "Recreate"})


def configuration(alerts: Alerts) -> str:
    """The routes of monitoring/alertmanager/alertmanager.yaml, and the receivers that the settings name."""
    config = yaml.safe_load((FILES / "alertmanager" / "alertmanager.yaml").read_text("utf-8"))
    people: dict[str, Any] = {}
    if alerts.slack_channel:
        text = {"title": '{{ template "mlops.title" . }}', "text": '{{ template "mlops.text" . }}'}
        slack = {"channel": alerts.slack_channel, "api_url_file": f"{_SECRETS}/slack-url", "send_resolved": True}
        people["slack_configs"] = [slack | text]
    if alerts.email_to:
        text = {"headers": {"Subject": '{{ template "mlops.title" . }}'}, "html": '{{ template "mlops.html" . }}'}
        password = {"auth_username": alerts.email_from, "auth_password_file": f"{_SECRETS}/smtp-password"}
        addresses = {"to": alerts.email_to, "from": alerts.email_from, "smarthost": alerts.smtp_host}
        people["email_configs"] = [addresses | {"send_resolved": True} | password | text]
    if alerts.webhook:
        people["webhook_configs"] = [_address("webhook", alerts.webhook) | {"send_resolved": True}]
    heartbeat = {"webhook_configs": [_address("heartbeat", alerts.heartbeat)]} if alerts.heartbeat else {}
    config["templates"] = [f"{_TEMPLATES}/*.tmpl"]
    config["receivers"] = [{"name": "nobody"}, {"name": "people", **people}, {"name": "heartbeat", **heartbeat}]
    return yaml.safe_dump(config, sort_keys=False)


def _address(name: str, url: str) -> dict[str, Any]:
    return {"url_file": f"{_SECRETS}/{name}-url"} if url == "secret" else {"url": url}
