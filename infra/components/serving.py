from typing import Any

import pulumi_kubernetes as k8s

from infra.ports import PORTS
from infra.workload import Workload, container, env, port, probe

_DRAIN_SECONDS = 5  # HAProxy has taken the pod out by then
_IN_FLIGHT = "mlops_serving_in_flight"


class Serving(Workload):
    """The app. Code moves by a rolling update that takes no replica away before the next is ready; a model moves inside
    the running pods, by the release log."""

    in_request_path = image_is_ours = True

    def create(self) -> None:
        settings = self.settings.serving
        self.service("http", headless=True)
        self.volume("scratch")
        self.volume("spool")
        self.volume("keys", {"config_map": {"name": "keyring"}})
        self._deployment(self.name, self.settings.images.app, "stable", None)
        if settings.canary_image:
            self._deployment(f"{self.name}-canary", settings.canary_image, "canary", settings.canary_replicas)
        self.disruption_budget()
        if settings.scale_on == "keda":
            self._scaled_object()
        else:
            self._autoscaler()

    def _deployment(self, name: str, image: str, track: str, replicas: int | None) -> None:
        settings, connections, number = self.settings.serving, self.platform.connections, PORTS["serving"]
        local = {"MLOPS_HOST": "0.0.0.0", "MLOPS_PORT": number, "MLOPS_SPOOL": "/spool", "HOME": "/tmp"}
        local["MLOPS_SANDBOX_MEMORY_MB"] = settings.sandbox_mb
        app = container(
            "app",
            image,
            cpu=settings.cpu,
            memory=settings.memory,
            command=["python", "-m", "app"],
            env=env(connections.serving | local, connections.secrets(self.name)),
            ports=[port("http", number)],
            mounts={"/tmp": "scratch", "/spool": "spool", "/keys": "keys"},
            startup_probe=probe("/healthz", number, 1, 60),
            readiness_probe=probe("/readyz", number, 2, 2),
            liveness_probe=probe("/healthz", number, 10, 6),
            lifecycle={"pre_stop": {"sleep": {"seconds": _DRAIN_SECONDS}}},
        )
        drained = {"termination_grace_period_seconds": _DRAIN_SECONDS + 40}
        template = self.pod(app, track, topology_spread_constraints=self.spread(), **drained)
        rolling = {"type": "RollingUpdate", "rolling_update": {"max_unavailable": 0, "max_surge": 1}}
        times = {"min_ready_seconds": 3, "progress_deadline_seconds": 300}
        self.deployment(template, name, track, replicas=replicas, strategy=rolling, **times)

    def _autoscaler(self) -> None:
        """On CPU, or on requests in flight by the metric of a prometheus-adapter (monitoring/prometheus/adapter.yaml)."""
        settings = self.settings.serving
        metric: Any = {"name": "cpu", "target": {"type": "Utilization", "average_utilization": 150}}
        metrics: list[Any] = [{"type": "Resource", "resource": metric}]
        if settings.scale_on == "adapter":
            service = {"api_version": "v1", "kind": "Service", "name": self.name}
            target = {"type": "AverageValue", "average_value": str(settings.in_flight)}
            metric = {"described_object": service, "metric": {"name": _IN_FLIGHT}, "target": target}
            metrics = [{"type": "Object", "object": metric}]
        spec: Any = {
            "scale_target_ref": {"api_version": "apps/v1", "kind": "Deployment", "name": self.name},
            "min_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            "metrics": metrics,
            "behavior": {"scale_up": _pace(2, 15, 0), "scale_down": _pace(1, 30, 120)},
        }
        k8s.autoscaling.v2.HorizontalPodAutoscaler(self.name, metadata=self.metadata(), spec=spec, opts=self.child)

    def _scaled_object(self) -> None:
        """KEDA makes the autoscaler."""
        settings, namespace = self.settings.serving, self.settings.namespace
        server = self.settings.monitoring.prometheus or f"http://prometheus.{namespace}.svc:{PORTS['prometheus']}"
        query = f'{_IN_FLIGHT}{{namespace="{namespace}"}}'
        trigger = {"serverAddress": server, "query": query, "threshold": str(settings.in_flight)}
        spec = {
            "scaleTargetRef": {"name": self.name},
            "minReplicaCount": settings.min_replicas,
            "maxReplicaCount": settings.max_replicas,
            "triggers": [{"type": "prometheus", "metadata": trigger}],
        }
        about: Any = {"metadata": self.metadata(), "spec": spec, "opts": self.child}
        k8s.apiextensions.CustomResource(self.name, "keda.sh/v1alpha1", "ScaledObject", **about)


def _pace(pods: int, period: int, window: int) -> Any:
    """At most so many pods within a period, both it and the stabilization window in seconds."""
    policy = {"type": "Pods", "value": pods, "period_seconds": period}
    return {"stabilization_window_seconds": window, "policies": [policy]}
