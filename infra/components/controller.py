from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_kubernetes as k8s

from infra.workload import container, env, metadata, pod, probe, scratch, selector, service, service_account

PORT = 9100


@dataclass(frozen=True, kw_only=True)
class ControllerArgs:
    """`values`: MLOPS_* settings; `variables`: environment of the identity `controller` towards bucket and tracking."""

    namespace: pulumi.Input[str]
    image: str
    pull_secret: str
    values: dict[str, Any]
    variables: list[Any]


class Controller(pulumi.ComponentResource):
    """The loop that looks after releases and logs, and the place where `mlops --env …` runs its commands. It alone holds
    the key that approves models for this environment."""

    def __init__(self, name: str, args: ControllerArgs, opts: pulumi.ResourceOptions | None = None):
        super().__init__("mlops:platform:Controller", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        service_account(name, args.namespace, child)
        self.service = service(name, args.namespace, {"metrics": PORT}, child, headless=True)
        loop = container(
            "controller",
            args.image,
            cpu="50m",
            memory="2Gi",
            command=["python", "-m", "monitoring.controller"],
            env=[*env(args.values | {"HOME": "/tmp", "MLOPS_HOME": "/tmp/mlops"}), *args.variables],  # noqa: S108
            ports=[{"name": "metrics", "container_port": PORT}],
            mounts={"/tmp": "scratch", "/keys": "keys"},  # noqa: S108
            startup_probe=probe("/metrics", PORT, period_seconds=2, failure_threshold=60),
            readiness_probe=probe("/metrics", PORT, period_seconds=10),
            liveness_probe=probe("/metrics", PORT, period_seconds=30, failure_threshold=4),
        )
        keys = signing_keys("approve", more=[{"secret": {"name": "client-key"}}])
        self.deployment = k8s.apps.v1.Deployment(
            name,
            metadata=metadata(name, args.namespace),
            spec={
                "replicas": 1,
                "selector": selector(name),
                "strategy": {"type": "Recreate"},
                "template": pod(name, [loop], [scratch(size="8Gi"), keys], args.pull_secret, termination_grace_period_seconds=60),
            },
            opts=child,
        )
        self.register_outputs({})


def signing_keys(role: str, more: list[Any] | None = None) -> Any:
    """A folder with the keyring, and the private half of one role."""
    sources = [{"config_map": {"name": "keyring"}}, {"secret": {"name": f"signing-{role}"}}, *(more or [])]
    return {"name": "keys", "projected": {"sources": sources, "default_mode": 0o440}}
