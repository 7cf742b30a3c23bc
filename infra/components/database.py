from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pulumi

from infra.settings import Database as DatabaseSettings
from infra.workload import container, env, pod, scratch, service, service_account, stateful_set

PORT = 5432
_POSTGRES_USER = 999  # of the image; its data folder belongs to it


@dataclass(frozen=True, kw_only=True)
class DatabaseArgs:
    namespace: pulumi.Input[str]
    image: str
    settings: DatabaseSettings
    storage_class: str


class Database(pulumi.ComponentResource):
    """PostgreSQL, one replica on one volume: for kind and dev."""

    def __init__(self, name: str, args: DatabaseArgs, opts: pulumi.ResourceOptions | None = None):
        super().__init__("mlops:platform:Database", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        service_account(name, args.namespace, child)
        self.service = service(name, args.namespace, {"postgres": PORT}, child, headless=True)
        ready: Any = {
            "exec": {"command": ["pg_isready", "-h", "127.0.0.1", "-U", args.settings.user]},
            "period_seconds": 5,
            "timeout_seconds": 5,
        }
        postgres = container(
            "postgres",
            args.image,
            cpu="50m",
            memory="512Mi",
            env=env(
                {"POSTGRES_USER": args.settings.user, "POSTGRES_DB": "postgres", "PGDATA": "/var/lib/postgresql/data/files"},
                {"POSTGRES_PASSWORD": ("database", "password")},
            ),
            ports=[{"name": "postgres", "container_port": PORT}],
            mounts={"/var/lib/postgresql/data": "data", "/tmp": "scratch", "/var/run/postgresql": "scratch"},  # noqa: S108
            startup_probe=ready | {"failure_threshold": 60},
            readiness_probe=ready,
            liveness_probe=ready | {"period_seconds": 20, "failure_threshold": 6},
        )
        template = pod(name, [postgres], [scratch()], user=_POSTGRES_USER, termination_grace_period_seconds=60)
        self.stateful_set = stateful_set(name, args.namespace, template, args.settings.size, args.storage_class, child)
        self.register_outputs({})
