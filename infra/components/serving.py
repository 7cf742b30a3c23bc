from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_kubernetes as k8s

from infra.settings import Serving as ServingSettings
from infra.workload import NAME, container, env, files, labels, metadata, pod, probe, scratch, selector, service, service_account, spread

PORT = 8080
_DRAIN_SECONDS = 5  # HAProxy has taken the pod out by then


@dataclass(frozen=True, kw_only=True)
class ServingArgs:
    """`values`: MLOPS_* settings of the app; `bucket`: environment of the identity `serving`."""

    namespace: pulumi.Input[str]
    image: str
    pull_secret: str
    settings: ServingSettings
    values: dict[str, Any]
    bucket: list[Any]


class Serving(pulumi.ComponentResource):
    """The app. Code moves by a rolling update that takes no replica away before the next is ready; a model moves inside
    the running pods, by the release log."""

    def __init__(self, name: str, args: ServingArgs, opts: pulumi.ResourceOptions | None = None):
        super().__init__("mlops:platform:Serving", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        service_account(name, args.namespace, child)
        self.service = service(name, args.namespace, {"http": PORT}, child, headless=True)
        self.deployment = _deployment(name, name, args, args.image, "stable", None, child)
        if args.settings.canary_image:
            _deployment(f"{name}-canary", name, args, args.settings.canary_image, "canary", args.settings.canary_replicas, child)
        k8s.policy.v1.PodDisruptionBudget(
            name,
            metadata=metadata(name, args.namespace),
            spec={"max_unavailable": 1, "selector": {"match_labels": {NAME: name}}},
            opts=child,
        )
        k8s.autoscaling.v2.HorizontalPodAutoscaler(
            name, metadata=metadata(name, args.namespace), spec=_scaling(name, args.settings), opts=child
        )
        self.register_outputs({})


def _deployment(
    full: str, name: str, args: ServingArgs, image: str, track: str, replicas: int | None, child: pulumi.ResourceOptions
) -> k8s.apps.v1.Deployment:
    settings = args.settings
    app = container(
        "app",
        image,
        cpu=settings.cpu,
        memory=settings.memory,
        command=["python", "-m", "app"],
        env=[*env(args.values | {"MLOPS_HOST": "0.0.0.0", "MLOPS_PORT": PORT, "MLOPS_SPOOL": "/spool", "HOME": "/tmp"}), *args.bucket],  # noqa: S104, S108
        ports=[{"name": "http", "container_port": PORT}],
        mounts={"/tmp": "scratch", "/spool": "spool", "/keys": "keys"},  # noqa: S108
        startup_probe=probe("/healthz", PORT, period_seconds=1, failure_threshold=60),
        readiness_probe=probe("/readyz", PORT, period_seconds=2, failure_threshold=2),
        liveness_probe=probe("/healthz", PORT, period_seconds=10, failure_threshold=6),
        lifecycle={"pre_stop": {"sleep": {"seconds": _DRAIN_SECONDS}}},
    )
    template = pod(
        name,
        [app],
        [scratch(), scratch("spool", "1Gi"), files("keys", "keyring")],
        args.pull_secret,
        track=track,
        termination_grace_period_seconds=_DRAIN_SECONDS + 40,
        topology_spread_constraints=spread(name),
    )
    spec: Any = {
        "selector": selector(name, track),
        "strategy": {"type": "RollingUpdate", "rolling_update": {"max_unavailable": 0, "max_surge": 1}},
        "min_ready_seconds": 3,
        "progress_deadline_seconds": 300,
        "template": template,
        **({"replicas": replicas} if replicas else {}),  # none: the HorizontalPodAutoscaler's
    }
    meta = metadata(full, args.namespace, name) | {"labels": labels(name, track=track)}
    return k8s.apps.v1.Deployment(full, metadata=meta, spec=spec, opts=child)


def _scaling(name: str, settings: ServingSettings) -> Any:
    in_flight = {
        "type": "Object",
        "object": {
            "described_object": {"api_version": "v1", "kind": "Service", "name": name},
            "metric": {"name": "mlops_serving_in_flight"},
            "target": {"type": "AverageValue", "average_value": str(settings.in_flight)},
        },
    }
    cpu = {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "average_utilization": 150}}}
    return {
        "scale_target_ref": {"api_version": "apps/v1", "kind": "Deployment", "name": name},
        "min_replicas": settings.min_replicas,
        "max_replicas": settings.max_replicas,
        "metrics": [in_flight if settings.scale_on == "inFlight" else cpu],
        "behavior": {
            "scale_up": {"stabilization_window_seconds": 0, "policies": [{"type": "Pods", "value": 2, "period_seconds": 15}]},
            "scale_down": {"stabilization_window_seconds": 120, "policies": [{"type": "Pods", "value": 1, "period_seconds": 30}]},
        },
    }
