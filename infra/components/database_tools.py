from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_kubernetes as k8s

from infra.workload import container, env, job, metadata, pod, scratch, service_account

_SECONDS = 3600


@dataclass(frozen=True, kw_only=True)
class DatabaseToolsArgs:
    namespace: pulumi.Input[str]
    image: str
    host: str
    port: int
    user: str
    secret: str


class DatabaseTools(pulumi.ComponentResource):
    """PostgreSQL's own tools, of the server's version, for an hour at a time: `mlops backup` makes a Job of this template
    and has it dump or restore. Until then it costs nothing."""

    def __init__(self, name: str, args: DatabaseToolsArgs, opts: pulumi.ResourceOptions | None = None):
        super().__init__("mlops:platform:DatabaseTools", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        service_account(name, args.namespace, child)
        tools = container(
            "tools",
            args.image,
            cpu="20m",
            memory="512Mi",
            command=["sh", "-c", f"export PATH=$PATH:$(ls -d /usr/lib/postgresql/*/bin); exec sleep {_SECONDS}"],
            env=env({"PGHOST": args.host, "PGPORT": args.port, "PGUSER": args.user}, {"PGPASSWORD": (args.secret, "password")}),
            mounts={"/tmp": "scratch"},  # noqa: S108
        )
        template: Any = pod(name, [tools], [scratch(size="8Gi")], termination_grace_period_seconds=1)
        spec = job(template, backoff=0, seconds=_SECONDS) | {"ttl_seconds_after_finished": 60}
        k8s.batch.v1.CronJob(
            name,
            metadata=metadata(name, args.namespace),
            spec={
                "schedule": "0 0 31 2 *",
                "suspend": True,
                "starting_deadline_seconds": 60,
                "job_template": {"metadata": {"labels": template["metadata"]["labels"]}, "spec": spec},
            },
            opts=child,
        )
        self.register_outputs({})
