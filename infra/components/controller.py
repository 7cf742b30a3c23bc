from typing import Any

from infra.ports import PORTS
from infra.workload import Workload, container, env, port, probe


class Controller(Workload):
    """The control loop of releases and logs, and where `mlops --env …` runs what reads the log. It parses what callers sent,
    so no key that signs is here: see the approver."""

    image_is_ours = True

    def create(self) -> None:
        connections, number = self.platform.connections, PORTS["controller"]
        database = f"{connections.database_host}:{self.settings.database.port}"
        local = {"MLOPS_DATABASE": database, "HOME": "/tmp", "MLOPS_HOME": "/tmp/mlops"}
        if self.settings.monitoring.kind == "bundled":
            local["MLOPS_ALERTMANAGER"] = f"http://alertmanager:{PORTS['alertmanager']}"
        self.service("metrics", headless=True)
        self.volume("scratch", size="8Gi")
        self.volume("keys", keyring({"secret": {"name": "client-key"}}))
        loop = container(
            "controller",
            self.settings.images.training,
            cpu="50m",
            memory="2Gi",
            command=["python", "-m", "monitoring.controller"],
            env=env(connections.values | local, connections.secrets(self.name)),
            ports=[port("metrics", number)],
            mounts={"/tmp": "scratch", "/keys": "keys"},
            startup_probe=probe("/metrics", number, 2, 60),
            readiness_probe=probe("/metrics", number, 10),
            liveness_probe=probe("/metrics", number, 30, 4),
        )
        self.deployment(self.pod(loop, termination_grace_period_seconds=60), strategy={"type": "Recreate"})


def keyring(*more: Any) -> Any:
    """The source of a volume with the public halves of all keys."""
    sources = [{"config_map": {"name": "keyring"}}, *more]
    return {"projected": {"sources": sources, "default_mode": 0o440}}


def signing_keys(role: str) -> Any:
    """The same with the private half of one role."""
    return keyring({"secret": {"name": f"signing-{role}"}})
