import ipaddress
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from infra import images
from infra.configuration import PROTECTED, Group, Labels, Name, ProgramSettings, pairs

Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$")]
Image = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._:/-]*(:[\w.-]+)?(@sha256:[0-9a-f]{64})?$")]
_UNITS = {"m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_UNITS |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
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


def _networks(listed: str) -> str:
    for address in filter(None, listed.split(",")):
        try:
            network = ipaddress.IPv4Network(address.partition(":")[0])
        except ValueError as error:
            raise PydanticCustomError("network", "{error}", {"error": str(error)}) from None
        if network.subnet_of(LINK_LOCAL) and ":" in address:
            raise PydanticCustomError("network", "reaches 169.254.0.0/16, where a node's credentials are")
    return listed


LINK_LOCAL = ipaddress.IPv4Network("169.254.0.0/16")
_CIDR, _NUMBER = r"[0-9]+(\.[0-9]+){3}/[0-9]+", "[0-9]+"
CidrPorts = Annotated[str, Field(pattern=rf"^({_CIDR}:{_NUMBER}(,{_CIDR}:{_NUMBER})*)?$"), AfterValidator(_networks)]
Cidrs = Annotated[str, Field(pattern=rf"^({_CIDR}(,{_CIDR})*)?$"), AfterValidator(_networks)]
_APP_MB = 512  # of a replica's own: 100 for code, the rest for two champions and what callers send
_LEAST_MB = 128
INTERPRETER_MB = 110  # of each child process, before it has a model
LOAD_BALANCER = "mlops-alb"  # class of an Ingress that EKS gives a load balancer of its own


def amount(quantity: str) -> float:
    number = quantity.rstrip("kKMGTim")
    return float(number) * _UNITS[quantity[len(number) :]]


class Cluster(Group):
    kind: Literal["kubeconfig", "eks"]
    context: str
    domain: str
    dns: Cidrs


class Nodes(Group):
    spot: Literal["none", "training", "all"]
    architecture: Literal["amd64", "arm64"]
    cpu: Quantity


class Images(Group):
    app: Image | Literal[""]
    training: Image | Literal[""]
    mlflow: Image | Literal[""]
    mirror: Mirror
    digests: bool
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
        image: str = getattr(self, name) if self.digests else getattr(self, name).partition("@")[0]
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
    sslmode: Literal["verify-full", "require"]
    ca: SecretName


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
    canary_image: Image | Literal[""]
    canary_replicas: Annotated[int, Field(ge=1)]

    @property
    def sandbox_mb(self) -> int:
        """What a model may take in each of the two child processes of a replica, the challenger's and the sandbox."""
        return int(amount(self.memory) / 2**20 - _APP_MB) // 2 - INTERPRETER_MB


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

    @property
    def load_balancer(self) -> bool:
        """Whether an Ingress gets one from EKS, which has the certificate."""
        return self.ingress.enabled and self.on_aws and self.ingress.class_ in ("", LOAD_BALANCER)

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
            f"serving.memory is {serving.memory}: leaves {serving.sandbox_mb} MB for a model; at least {_LEAST_MB}":
                serving.sandbox_mb < _LEAST_MB,
            "serving.scaleOn is keda: needs monitoring.prometheus, or the bundled monitoring": serving.scale_on == "keda"
            and elsewhere and not self.monitoring.prometheus,
            "ingress.enabled is true: needs ingress.host": ingress.enabled and not ingress.host,
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
        return problems | ({} if self.environment == "kind" else self._open_to_others())

    def _open_to_others(self) -> dict[str, bool]:
        """Problems of an environment that is no cluster of this machine."""
        ingress, alerts, problems = self.ingress, self.alerts, dict[str, bool]()
        named = self.images.model_dump(by_alias=True, exclude={"mirror", "digests", "pull_secret"})
        named = {f"images.{name}": image for name, image in named.items()}
        for name, image in (named | {"serving.canaryImage": self.serving.canary_image or "@sha256:"}).items():
            hint = "outside kind it must be named by digest"
            hint += " (mlops images --push)" if name.rpartition(".")[2] in images.TARGETS else ": NAME:TAG@sha256:…"
            problems[f"{name} is {image or 'empty'}: {hint}"] = "@sha256:" not in image
        certificate, missing = "certificate" if self.load_balancer else "tlsSecret", "needs one outside kind"
        chosen = ingress.certificate if self.load_balancer else ingress.tls_secret
        problems[f"ingress.{certificate} is empty: {missing}; without TLS API keys are read on the way"] = (
            ingress.enabled and not chosen
        )
        problems[
            "images.digests is false: only for kind, into which images are loaded without them"
        ] = not self.images.digests
        problems["serving.nodePort: only for kind; it has no TLS, use ingress"] = bool(self.serving.node_port)
        addresses = {"bucket.endpoint": self.bucket.endpoint, "tracking.url": self.tracking.url}
        addresses |= {"alerts.webhook": alerts.webhook, "alerts.heartbeat": alerts.heartbeat}
        for name, url in addresses.items():
            problems[f"{name} is {url}: outside the cluster it must be https"] = url.startswith("http:") and not (
                self._inside(url)
            )
        return problems

    def _inside(self, url: str) -> bool:
        host = urlsplit(url).hostname or ""
        return "." not in host or host.endswith((".svc", f".svc.{self.cluster.domain}"))
