"""The platform on one cluster: keys, bucket and database, tracking, serving behind its proxy, controller, approver,
training, monitoring."""

import pulumi

from infra.components.alertmanager import Alertmanager
from infra.components.approver import Approver
from infra.components.bucket import Bucket
from infra.components.controller import Controller
from infra.components.database import Database
from infra.components.eks import Eks
from infra.components.grafana import Grafana
from infra.components.kube_state_metrics import KubeStateMetrics
from infra.components.network import Network
from infra.components.operator import OperatorObjects
from infra.components.prometheus import Prometheus
from infra.components.proxy import Proxy
from infra.components.serving import Serving
from infra.components.setup import Setup
from infra.components.tracking import Tracking
from infra.components.training import Training
from infra.platform import Platform

platform = Platform()
settings = platform.settings

cluster = [Eks("eks", platform)] if settings.on_aws else []
network = Network("network", platform, *cluster)
keys = Setup("setup-keys", platform, network)

stores = [Bucket("bucket", platform, keys)] if settings.bucket.kind == "bundled" else []
bucket = Setup("setup-bucket", platform, network, keys, *stores)

if settings.tracking.kind == "bundled":
    databases = [Database("database", platform, keys)] if settings.database.kind == "bundled" else []
    schema = Setup("setup-database", platform, network, keys, *databases)
    Tracking("tracking", platform, schema, bucket)

Serving("serving", platform, bucket)
Proxy("proxy", platform, network)
Controller("controller", platform, bucket)
Approver("approver", platform, bucket)
Training("training", platform, bucket)

if settings.monitoring.kind == "bundled":
    Prometheus("prometheus", platform, network)
    Alertmanager("alertmanager", platform, network)
    if settings.kube_state_metrics.enabled:
        KubeStateMetrics("kube-state-metrics", platform, network)
    if settings.grafana.enabled:
        Grafana("grafana", platform, keys)
elif settings.monitoring.kind == "operator":
    OperatorObjects("operator", platform, network)

for name, value in platform.outputs().items():
    pulumi.export(name, value)
