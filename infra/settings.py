from typing import Annotated, Any, Literal, Self

import pulumi
from pulumi.runtime.config import CONFIG, get_config_env
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from mlops.environment import only_model
from mlops.errors import UserError, explain

Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$")]
Image = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._:/-]*(:[\w.-]+|@sha256:[0-9a-f]{64})$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
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
Labels = Annotated[str, Field(pattern=r"^([\w./-]+=[\w.-]+(,[\w./-]+=[\w.-]+)*)?$")]


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, coerce_numbers_to_str=True)


class Cluster(_Group):
    context: str
    domain: str


class Images(_Group):
    app: Image
    training: Image
    mlflow: Image
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


class Bucket(_Group):
    kind: Literal["bundled", "external"]
    url: Annotated[str, Field(pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[\w./-]+)?$")]
    endpoint: Url
    region: str
    secret: SecretName
    size: Quantity


class Database(_Group):
    kind: Literal["bundled", "external"]
    host: str
    port: Port
    user: Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]*$")]
    secret: SecretName
    size: Quantity


class Tracking(_Group):
    kind: Literal["bundled", "external"]
    url: Url
    secret: SecretName
    hosts: str


class Serving(_Group):
    min_replicas: Annotated[int, Field(ge=1)]
    max_replicas: Annotated[int, Field(ge=1)]
    scale_on: Literal["cpu", "keda", "adapter"]
    in_flight: Annotated[int, Field(ge=1)]
    cpu: Quantity
    memory: Quantity
    node_port: Annotated[int, Field(ge=0, le=65535)]
    canary_image: str
    canary_replicas: Annotated[int, Field(ge=1)]


class Ingress(_Group):
    enabled: bool
    class_: Annotated[str, Field(alias="class")]
    host: str
    tls_secret: SecretName


class Training(_Group):
    schedule: Cron
    data: Literal["load", "snapshot"]
    secret: SecretName
    egress: CidrPorts
    cpu: Quantity
    memory: Quantity


class Monitoring(_Group):
    kind: Literal["bundled", "operator", "none"]
    labels: Labels
    namespace: Name
    prometheus: Url
    retention: Annotated[str, Field(pattern=r"^[0-9]+[hdwy]$")]
    size: Quantity

    @property
    def selected(self) -> dict[str, str]:
        return dict(pair.split("=") for pair in self.labels.split(",") if pair)


class Switch(_Group):
    enabled: bool


class Alerts(_Group):
    secret: SecretName
    slack_channel: str
    email_to: str
    email_from: str
    smtp_host: HostPort
    webhook: UrlOrSecret
    heartbeat: UrlOrSecret


class Settings(_Group):
    """What `Pulumi.yaml` declares and `environments/Pulumi.<environment>.yaml` changes, checked and typed."""

    environment: Name
    cluster_scope: bool
    namespace: Name
    model: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,40}$")]
    storage_class: str
    cluster: Cluster
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

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if problems := [problem for problem, wrong in self._problems().items() if wrong]:
            raise ValueError("; ".join(problems))
        return self

    def _problems(self) -> dict[str, bool]:
        database, tracking, serving, alerts = self.database, self.tracking, self.serving, self.alerts
        smallest, people = serving.min_replicas, bool(alerts.slack_channel or alerts.email_to)
        lasting, elsewhere = self.environment in ("staging", "prod"), self.monitoring.kind != "bundled"
        secret_url = "secret" in (alerts.webhook, alerts.heartbeat)
        problems = {
            "database.kind is external: needs database.host and database.secret": database.kind == "external"
            and not (database.host and database.secret),
            "tracking.kind is external: needs tracking.url": tracking.kind == "external" and not tracking.url,
            f"serving.maxReplicas is {serving.max_replicas}: must be at least serving.minReplicas, {smallest}":
                serving.max_replicas < smallest,
            "serving.scaleOn is keda: needs monitoring.prometheus, or the bundled monitoring": serving.scale_on == "keda"
            and elsewhere and not self.monitoring.prometheus,
            "ingress.enabled is true: needs ingress.host": self.ingress.enabled and not self.ingress.host,
            "alerts.slackChannel, alerts.emailTo: need alerts.secret": people and not alerts.secret,
            "alerts.webhook, alerts.heartbeat: secret needs alerts.secret": secret_url and not alerts.secret,
            "alerts.emailTo: needs alerts.emailFrom and alerts.smtpHost": bool(alerts.email_to)
            and not (alerts.email_from and alerts.smtp_host),
        }  # fmt: skip
        for kind in ("bucket", "database"):
            bundled = getattr(self, kind).kind == "bundled"
            problems[f"{kind}.kind is bundled: only for kind and dev; use external"] = lasting and bundled
        for name in ("app", "training", "mlflow"):
            image, hint = getattr(self.images, name), "outside kind it must be named by digest (mlops images --push)"
            problems[f"images.{name} is {image}: {hint}"] = self.environment != "kind" and "@sha256:" not in image
        return problems

    @classmethod
    def load(cls) -> Self:
        """Of the current stack. Raises pulumi.RunError that lists every problem."""
        config = pulumi.Config()
        values: dict[str, Any] = {"environment": pulumi.get_stack()}
        for key in CONFIG.get() or get_config_env():
            if (name := key.removeprefix(f"{config.name}:")) != key:
                value = config.require(name)
                values[name] = config.require_object(name) if value.startswith("{") else value
        try:
            values["model"] = values.get("model") or only_model()
            return cls.model_validate(values)
        except UserError as error:
            raise pulumi.RunError(str(error)) from None
        except ValidationError as error:
            lines = [f"settings of {pulumi.get_stack()}: fix each problem listed below", *explain(error)]
            raise pulumi.RunError("\n  ".join(lines)) from None
