from typing import Any

import pulumi_kubernetes as k8s

from infra.components.controller import signing_keys
from infra.components.eks import SPOT_TAINT
from infra.workload import Workload, container, env, job

_NEVER = "0 0 31 2 *"
_HOURS = 6


class Training(Workload):
    """Each day a model is trained if one is due; on demand by `mlops --env … train` or `retrain`, which make a Job from the
    same template."""

    image_is_ours = True

    def create(self) -> None:
        settings, connections = self.settings.training, self.platform.connections
        local = {"MLOPS_DATA": settings.data, "HOME": "/tmp", "MLOPS_HOME": "/tmp/mlops"}
        self.volume("scratch", size="8Gi")
        self.volume("keys", signing_keys("build"))
        train = container(
            "train",
            self.settings.images.training,
            cpu=settings.cpu,
            memory=settings.memory,
            command=["python", "-m", "cli", "--json"],
            args=["retrain", "--if-due"],
            env=env(connections.values | local, connections.secrets(self.name)),
            env_from=[{"secret_ref": {"name": settings.secret}}] if settings.secret else [],
            mounts={"/tmp": "scratch", "/keys": "keys"},
        )
        spot: dict[str, Any] = {"tolerations": [SPOT_TAINT | {"operator": "Equal"}]} if self.settings.on_aws else {}
        template = self.pod(train, **spot)
        # What was asked for and refused is refused again.
        refused = {"container_name": "train", "operator": "In", "values": [3]}
        interrupted = {
            "type": "DisruptionTarget",
            "status": "True",
        }  # as a spot node's pods are: not the training's fault
        rules = [
            {"action": "FailJob", "on_exit_codes": refused},
            {"action": "Ignore", "on_pod_conditions": [interrupted]},
        ]
        policy = {"rules": rules}
        run = job(template, backoff=2, seconds=_HOURS * 3600)
        kept = {"pod_failure_policy": policy, "ttl_seconds_after_finished": 7 * 24 * 3600}
        spec: Any = {
            "schedule": settings.schedule or _NEVER,
            "suspend": not settings.schedule,
            "concurrency_policy": "Forbid",
            "starting_deadline_seconds": 3600,
            "job_template": {"metadata": {"labels": template["metadata"]["labels"]}, "spec": run | kept},
        }
        k8s.batch.v1.CronJob(self.name, metadata=self.metadata(), spec=spec, opts=self.child)
