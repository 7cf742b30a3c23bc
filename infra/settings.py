from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from infra import images
from infra.configuration import PROTECTED, Group, Labels, Name, ProgramSettings, pairs

Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$")]
Image = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._:/-]*(:[\w.-]+|@sha256:[0-9a-f]{64})$")]
Port = Annotated[int, Field(ge=1, le=65535)]
# Hardly any password matches this pattern, so one pasted here by mistake goes nowhere.
SecretName = Annotated[str, Field(pattern=r"^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?)?$")]


def _no_password(url: str) -> str:
    if "@" in url:
        hint = "must not contain a password: it would be in Pulumi's state; put it into a Secret"
        raise PydanticCustomError("password", hint)
    return url


Url = Annotated[str, Field(pattern=r"^(https?://\S+)?$"), AfterValidator(_no_password)]
UrlOrSecret = Annotated[str, Field(pattern=r"^(https?://\S+|secret)?$"), AfterValidator(_no_password)]
HostPort = Annotated[str, Field(pattern=r"^([\w.-]+:[0-9]+)?$")]
Mirror = Annotated[str, Field(pattern=r"^([\w.:-]+(/[\w./-]+)?)?$")]
Cron = Annotated[str, Field(pattern=r"^((\S+\s+){4}\S+)?$")]
CidrPorts = Annotated[str, Field(pattern=r"^([0-9./]+:[0-9]+(,[0-9./]+:[0-9]+)*)?$")]


class Cluster(Group):
    kind: Literal["kubeconfig", "eks"]
    context: str
    domain: str


class Nodes(Group):
    spot: Literal["none", "training", "all"]
    architecture: Literal["amd64", "arm64"]
    cpu: Quantity


class Images(Group):
    app: Image | Literal[""]
    training: Image | Literal[""]
    mlflow: Image | Literal[""]
    mirror: Mirror
    pull_secret: SecretName
    postgres: Image
    versitygw: Image
    haproxy: Image
    prometheus: Image
    alertmanager: Image
    grafana: Image
    kube_state_metrics: Image

    def third_party(self, name: str) -> str:
        """From the mirror, if there is one, which replaces the registry's host."""
        image: str = getattr(self, name)
        return f"{self.mirror}/{image.partition('/')[2]}" if self.mirror else image


class Bucket(Group):
    kind: Literal["bundled", "s3", "external"]
    url: Annotated[str, Field(pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[\w./-]+)?$")]
    endpoint: Url
    region: str
    secret: SecretName
    size: Quantity


class Database(Group):
    kind: Literal["bundled", "rds", "external"]
    host: str
    port: Port
    user: Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]*$")]
    secret: SecretName
    size: Quantity


class Tracking(Group):
    kind: Literal["bundled", "external"]
    url: Url
    secret: SecretName
    hosts: str


class Serving(Group):
    min_replicas: Annotated[int, Field(ge=1)]
    max_replicas: Annotated[int, Field(ge=1)]
    scale_on: Literal["cpu", "keda", "adapter"]
    in_flight: Annotated[int, Field(ge=1)]
    cpu: Quantity
    memory: Quantity
    node_port: Annotated[int, Field(ge=0, le=65535)]
    canary_image: str
    canary_replicas: Annotated[int, Field(ge=1)]


class Ingress(Group):
    enabled: bool
    class_: Annotated[str, Field(alias="class")]
    host: str
    tls_secret: SecretName
    scheme: Literal["internal", "internet-facing"]
    certificate: Annotated[str, Field(pattern=r"^(arn:aws[\w-]*:acm:\S+)?$")]


class Training(Group):
    schedule: Cron
    data: Literal["load", "snapshot"]
    secret: SecretName
    egress: CidrPorts
    cpu: Quantity
    memory: Quantity


class Monitoring(Group):
    kind: Literal["bundled", "operator", "none"]
    labels: Labels
    namespace: Name
    prometheus: Url
    retention: Annotated[str, Field(pattern=r"^[0-9]+[hdwy]$")]
    size: Quantity

    @property
    def selected(self) -> dict[str, str]:
        return pairs(self.labels)


class Switch(Group):
    enabled: bool


class Alerts(Group):
    secret: SecretName
    slack_channel: str
    email_to: str
    email_from: str
    smtp_host: HostPort
    webhook: UrlOrSecret
    heartbeat: UrlOrSecret


class Settings(ProgramSettings):
    """What `Pulumi.yaml` declares and `environments/Pulumi.<environment>.yaml` changes."""

    cluster_scope: bool
    namespace: Name
    model: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,40}$")]
    storage_class: str
    unlock: bool
    cluster: Cluster
    nodes: Nodes
    images: Images
    bucket: Bucket
    database: Database
    tracking: Tracking
    serving: Serving
    ingress: Ingress
    training: Training
    monitoring: Monitoring
    grafana: Switch
    kube_state_metrics: Switch
    alerts: Alerts

    @property
    def on_aws(self) -> bool:
        """Whether something of it is made by infra/aws."""
        return self.cluster.kind == "eks"

    def problems(self) -> dict[str, bool]:
        database, tracking, serving, alerts = self.database, self.tracking, self.serving, self.alerts
        smallest, people = serving.min_replicas, bool(alerts.slack_channel or alerts.email_to)
        elsewhere, ingress = self.monitoring.kind != "bundled", self.ingress
        secret_url = "secret" in (alerts.webhook, alerts.heartbeat)
        problems = {
            "database.kind is external: needs database.host and database.secret": database.kind == "external"
            and not (database.host and database.secret),
            "tracking.kind is external: needs tracking.url": tracking.kind == "external" and not tracking.url,
            f"serving.maxReplicas is {serving.max_replicas}: must be at least serving.minReplicas, {smallest}":
                serving.max_replicas < smallest,
            "serving.scaleOn is keda: needs monitoring.prometheus, or the bundled monitoring": serving.scale_on == "keda"
            and elsewhere and not self.monitoring.prometheus,
            "ingress.enabled is true: needs ingress.host": ingress.enabled and not ingress.host,
            "ingress.certificate is empty: an internet-facing load balancer needs one":
                ingress.enabled and self.on_aws and ingress.scheme == "internet-facing" and not ingress.certificate,
            "ingress.class is empty: needs one where clusterScope is false": ingress.enabled
            and self.on_aws and not self.cluster_scope and not ingress.class_,
            "alerts.slackChannel, alerts.emailTo: need alerts.secret": people and not alerts.secret,
            "alerts.webhook, alerts.heartbeat: secret needs alerts.secret": secret_url and not alerts.secret,
            "alerts.emailTo: needs alerts.emailFrom and alerts.smtpHost": bool(alerts.email_to)
            and not (alerts.email_from and alerts.smtp_host),
        }  # fmt: skip
        for name, managed in (("bucket", "s3"), ("database", "rds")):
            kind = getattr(self, name).kind
            hint = f"{name}.kind is bundled: only for kind and dev; use {managed} or external"
            problems[hint] = self.environment in PROTECTED and kind == "bundled"
            problems[f"{name}.kind is {managed}: needs cluster.kind eks; elsewhere use external"] = (
                kind == managed and not self.on_aws
            )
        for name in images.TARGETS:
            image, hint = getattr(self.images, name), "outside kind it must be named by digest (mlops images --push)"
            problems[f"images.{name} is {image or 'empty'}: {hint}"] = (
                self.environment != "kind" and "@sha256:" not in image
            )
        return problems
