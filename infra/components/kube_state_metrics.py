import pulumi

from infra.ports import PORTS
from infra.workload import Workload, container, port, probe

_WATCHED = {
    "": ["pods", "persistentvolumeclaims"],
    "apps": ["deployments", "statefulsets"],
    "batch": ["jobs", "cronjobs"],
    "autoscaling": ["horizontalpodautoscalers"],
}


class KubeStateMetrics(Workload):
    """Kubernetes' own state of this namespace, and of no other."""

    def create(self) -> None:
        number = PORTS["kube-state-metrics"]
        watched = ",".join(kind for kinds in _WATCHED.values() for kind in kinds)
        may = ["list", "watch"]
        self.role([{"api_groups": [api], "resources": kinds, "verbs": may} for api, kinds in _WATCHED.items()])
        self.service("http", headless=True)
        namespaces = pulumi.Output.concat("--namespaces=", self.platform.namespace)
        exporter = container(
            "exporter",
            self.settings.images.third_party("kube_state_metrics"),
            cpu="20m",
            memory="256Mi",
            args=[namespaces, f"--resources={watched}", f"--port={number}"],
            ports=[port("http", number)],
            readiness_probe=probe("/metrics", number, 10),
            liveness_probe=probe("/livez", number, 30, 4),
        )
        self.deployment(self.pod(exporter, automount_service_account_token=True))
