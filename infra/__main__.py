"""The platform on one cluster: keys, database and bucket, tracking, serving behind its proxy, controller, training, monitoring."""

from __future__ import annotations

import pulumi
import pulumi_kubernetes as k8s

from infra.components.alertmanager import Alertmanager, AlertmanagerArgs
from infra.components.bucket import Bucket, BucketArgs
from infra.components.controller import Controller, ControllerArgs
from infra.components.database import Database, DatabaseArgs
from infra.components.database_tools import DatabaseTools, DatabaseToolsArgs
from infra.components.grafana import Grafana, GrafanaArgs
from infra.components.kube_state_metrics import KubeStateMetrics, KubeStateMetricsArgs
from infra.components.metrics_api import MetricsApi, MetricsApiArgs
from infra.components.network import Network, NetworkArgs
from infra.components.operator import OperatorObjects, OperatorObjectsArgs
from infra.components.prometheus import Prometheus, PrometheusArgs
from infra.components.proxy import Proxy, ProxyArgs
from infra.components.serving import Serving, ServingArgs
from infra.components.setup import Setup, SetupArgs
from infra.components.tracking import Tracking, TrackingArgs
from infra.components.training import Training, TrainingArgs
from infra.connections import Connections
from infra.flows import flows
from infra.settings import Settings

settings = Settings.load()
images, connections, monitoring = settings.images, Connections(settings), settings.monitoring
ours = {"pull_secret": images.pull_secret}
cluster = k8s.Provider("cluster", context=settings.cluster.context or None)


def after(*needed: pulumi.Resource) -> pulumi.ResourceOptions:
    return pulumi.ResourceOptions(provider=cluster, depends_on=list(needed))


namespace: pulumi.Input[str] = settings.namespace
if settings.cluster_scope:
    pod_security = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    owned = k8s.core.v1.Namespace(
        "namespace",
        metadata={"name": settings.namespace, "labels": pod_security},
        opts=pulumi.ResourceOptions(provider=cluster, protect=settings.environment in ("staging", "prod")),
    )
    namespace = owned.metadata["name"]
network = Network("network", NetworkArgs(namespace=namespace, flows=flows(settings)), after())


def setup(step: str, values: dict, secrets: dict, *needed: pulumi.Resource) -> Setup:
    args = SetupArgs(step=step, namespace=namespace, image=images.mlflow, values=values, secrets=secrets, **ours)
    return Setup(f"setup-{step}", args, after(network, *needed))


keys = setup("keys", {"MLOPS_ENV": settings.environment}, {})

stored: list[pulumi.Resource] = [keys]
if settings.bucket.kind == "bundled":
    image = images.third_party("versitygw")
    stored.append(
        Bucket(
            "bucket",
            BucketArgs(namespace=namespace, image=image, size=settings.bucket.size, storage_class=settings.storage_class),
            after(keys),
        )
    )
bucket = setup("bucket", connections.values | connections.bucket_values, connections.setup_bucket(), *stored)

if settings.tracking.kind == "bundled":
    recorded: list[pulumi.Resource] = [keys]
    if settings.database.kind == "bundled":
        image = images.third_party("postgres")
        recorded.append(
            Database(
                "database",
                DatabaseArgs(namespace=namespace, image=image, settings=settings.database, storage_class=settings.storage_class),
                after(keys),
            )
        )
    uris = {"MLFLOW_BACKEND_STORE_URI": connections.backend, "MLFLOW_AUTH_STORE_URI": connections.auth}
    schema = setup("database", uris, connections.setup_database(), *recorded)
    Tracking(
        "tracking",
        TrackingArgs(
            namespace=namespace,
            image=images.mlflow,
            backend=connections.backend,
            auth=connections.auth,
            database_secret=connections.database_secret,
            artifacts=f"{settings.bucket.url}/mlflow",
            bucket=connections.bucket("tracking"),
            hosts=[host for host in settings.tracking.hosts.split(",") if host],
            **ours,
        ),
        after(schema, bucket),
    )
    DatabaseTools(
        "database-tools",
        DatabaseToolsArgs(
            namespace=namespace,
            image=images.third_party("postgres"),
            host=connections.database_host,
            port=settings.database.port,
            user=settings.database.user,
            secret=connections.database_secret,
        ),
        after(keys),
    )

serving = Serving(
    "serving",
    ServingArgs(
        namespace=namespace,
        image=images.app,
        settings=settings.serving,
        values={key: value for key, value in connections.values.items() if key not in ("MLOPS_ENDPOINT", "MLOPS_TRACKING")},
        bucket=connections.bucket("serving"),
        **ours,
    ),
    after(bucket),
)
proxy = Proxy(
    "proxy",
    ProxyArgs(
        namespace=namespace,
        image=images.third_party("haproxy"),
        service=f"serving.{settings.namespace}.svc.{settings.cluster.domain}",
        node_port=settings.serving.node_port,
        ingress_class=settings.ingress.class_,
        ingress_host=settings.ingress.host if settings.ingress.enabled else "",
        ingress_tls_secret=settings.ingress.tls_secret,
    ),
    after(network),
)
if settings.serving.scale_on == "inFlight" and settings.serving.metrics_api == "bundled":
    api = MetricsApiArgs(
        namespace=namespace, namespace_name=settings.namespace, image=images.training, service="serving", proxies="proxy-metrics", **ours
    )
    MetricsApi("metrics-api", api, after(network))
Controller(
    "controller",
    ControllerArgs(
        namespace=namespace,
        image=images.training,
        values=connections.values | {"MLOPS_DATABASE": f"{connections.database_host}:{settings.database.port}"},
        variables=[*connections.bucket("controller"), *connections.tracking("controller")],
        **ours,
    ),
    after(bucket),
)
Training(
    "training",
    TrainingArgs(
        namespace=namespace,
        image=images.training,
        settings=settings.training,
        values=connections.values,
        variables=[*connections.bucket("training"), *connections.tracking("training")],
        **ours,
    ),
    after(bucket),
)

if monitoring.kind == "bundled":
    Prometheus(
        "prometheus",
        PrometheusArgs(
            namespace=namespace,
            namespace_name=settings.namespace,
            image=images.third_party("prometheus"),
            retention=monitoring.retention,
            size=monitoring.size,
            storage_class=settings.storage_class,
        ),
        after(network),
    )
    Alertmanager(
        "alertmanager",
        AlertmanagerArgs(namespace=namespace, image=images.third_party("alertmanager"), alerts=settings.alerts),
        after(network),
    )
    if settings.kube_state_metrics.enabled:
        exporter = KubeStateMetricsArgs(namespace=namespace, image=images.third_party("kube_state_metrics"))
        KubeStateMetrics("kube-state-metrics", exporter, after(network))
    if settings.grafana.enabled:
        Grafana("grafana", GrafanaArgs(namespace=namespace, image=images.third_party("grafana")), after(keys))
elif monitoring.kind == "operator":
    scraped = {"serving": "http", "proxy": "metrics", "controller": "metrics"}
    objects = OperatorObjectsArgs(namespace=namespace, scraped=scraped, labels=monitoring.selected, dashboards=settings.grafana.enabled)
    OperatorObjects("operator", objects, after(network))


def forward(service: str, port: int) -> str:
    return f"kubectl{f' --context {settings.cluster.context}' if settings.cluster.context else ''} -n {settings.namespace} port-forward svc/{service} {port}"


pulumi.export("namespace", settings.namespace)
pulumi.export("predictions", f"http://127.0.0.1:{settings.serving.node_port}" if settings.serving.node_port else forward("proxy", 8080))
pulumi.export(
    "tracking",
    f"{forward('tracking', 5000)}   # http://127.0.0.1:5000, user admin" if settings.tracking.kind == "bundled" else settings.tracking.url,
)
pulumi.export(
    "password",
    f"kubectl -n {settings.namespace} get secret tracking-admin -o jsonpath='{{.data.password}}' | base64 -d   # grafana: secret grafana",
)
pulumi.export("apiKey", f"kubectl -n {settings.namespace} get secret client-key -o jsonpath='{{.data.client\\.key}}' | base64 -d")
if monitoring.kind == "bundled":
    pulumi.export("prometheus", forward("prometheus", 9090))
    if settings.grafana.enabled:
        pulumi.export("grafana", f"{forward('grafana', 3000)}   # http://127.0.0.1:3000, user admin")
pulumi.export("next", f"uv run mlops --env {settings.environment} status")
