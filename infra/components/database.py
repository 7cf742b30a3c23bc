from typing import Any

from infra.ports import PORTS
from infra.workload import Workload, container, env, port


class Database(Workload):
    """PostgreSQL, one replica on one volume: for kind and dev."""

    user = 999  # of the image; its data folder belongs to it

    def create(self) -> None:
        settings, number = self.settings.database, PORTS["database"]
        check = ["pg_isready", "-h", "127.0.0.1", "-U", settings.user]
        ready: Any = {"exec": {"command": check}, "period_seconds": 5, "timeout_seconds": 5}
        values = {"POSTGRES_USER": settings.user, "POSTGRES_DB": "postgres", "PGDATA": "/var/lib/postgresql/data/files"}
        self.service("postgres", headless=True)
        self.volume("scratch")
        postgres = container(
            "postgres",
            self.settings.images.third_party("postgres"),
            cpu="50m",
            memory="512Mi",
            env=env(values, {"POSTGRES_PASSWORD": ("database", "password")}),
            ports=[port("postgres", number)],
            mounts={"/var/lib/postgresql/data": "data", "/tmp": "scratch", "/var/run/postgresql": "scratch"},
            startup_probe=ready | {"failure_threshold": 60},
            readiness_probe=ready,
            liveness_probe=ready | {"period_seconds": 20, "failure_threshold": 6},
        )
        self.stateful_set(self.pod(postgres, termination_grace_period_seconds=60), settings.size)
