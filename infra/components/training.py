from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_kubernetes as k8s

from infra.components.controller import signing_keys
from infra.settings import Training as TrainingSettings
from infra.workload import container, env, job, metadata, pod, scratch, service_account

_NEVER = "0 0 31 2 *"
_HOURS = 6


@dataclass(frozen=True, kw_only=True)
class TrainingArgs:
    """`values`: MLOPS_* settings; `variables`: environment of the identity `training` towards bucket and tracking."""

    namespace: pulumi.Input[str]
    image: str
    pull_secret: str
    settings: TrainingSettings
    values: dict[str, Any]
    variables: list[Any]


class Training(pulumi.ComponentResource):
    """Training on a schedule; on demand by `mlops --env … train`, which makes a Job of the same template."""

    def __init__(self, name: str, args: TrainingArgs, opts: pulumi.ResourceOptions | None = None):
        super().__init__("mlops:platform:Training", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        service_account(name, args.namespace, child)
        settings = args.settings
        values = args.values | {"MLOPS_DATA": settings.data, "HOME": "/tmp", "MLOPS_HOME": "/tmp/mlops"}  # noqa: S108
        train = container(
            "train",
            args.image,
            cpu=settings.cpu,
            memory=settings.memory,
            command=["python", "-m", "mlops.cli", "--json"],
            args=["train"],
            env=[*env(values), *args.variables],
            env_from=[{"secret_ref": {"name": settings.secret}}] if settings.secret else [],
            mounts={"/tmp": "scratch", "/keys": "keys"},  # noqa: S108
        )
        template: Any = pod(name, [train], [scratch(size="8Gi"), signing_keys("build")], args.pull_secret)
        # A refusal by the gate is an answer, and asking again would give the same one.
        spec: Any = job(template, backoff=2, seconds=_HOURS * 3600)
        spec["pod_failure_policy"] = {
            "rules": [{"action": "FailJob", "on_exit_codes": {"container_name": "train", "operator": "In", "values": [3]}}]
        }
        spec["ttl_seconds_after_finished"] = 7 * 24 * 3600
        self.cron_job = k8s.batch.v1.CronJob(
            name,
            metadata=metadata(name, args.namespace),
            spec={
                "schedule": settings.schedule or _NEVER,
                "suspend": not settings.schedule,
                "concurrency_policy": "Forbid",
                "starting_deadline_seconds": 3600,
                "job_template": {"metadata": {"labels": template["metadata"]["labels"]}, "spec": spec},
            },
            opts=child,
        )
        self.register_outputs({})
