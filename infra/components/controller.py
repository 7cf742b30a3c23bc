from typing import Any

from infra.ports import PORTS
from infra.workload import Workload, container, env, port, probe


class Loop(Workload):
    """A process of `monitoring` that repeats its steps, one at a time, and serves its metrics."""

    image_is_ours = True

    def loop(self, memory: str, keys: Any, **values: Any) -> None:
        """`keys`: the source of the volume with the keys that it has; `values`: variables beside the platform's."""
        connections, number = self.platform.connections, PORTS[self.name]
        local = {"HOME": "/tmp", "MLOPS_HOME": "/tmp/mlops"} | values
        self.service("metrics", headless=True)
        self.volume("scratch", size="8Gi")
        self.volume("keys", keys)
        steps = container(
            self.name,
            self.settings.images.training,
            cpu="50m",
            memory=memory,
            command=["python", "-m", f"monitoring.{self.name}"],
            env=env(connections.values | local, connections.secrets(self.name)),
            ports=[port("metrics", number)],
            mounts={"/tmp": "scratch", "/keys": "keys"},
            startup_probe=probe("/metrics", number, 2, 60),
            readiness_probe=probe("/metrics", number, 10),
            liveness_probe=probe("/metrics", number, 30, 4),
        )
        self.deployment(self.pod(steps, termination_grace_period_seconds=60), strategy={"type": "Recreate"})


class Controller(Loop):
    """The control loop of releases and logs, and where `mlops --env …` runs what reads the log. It parses what callers sent,
    so no key that signs is here: see the approver."""

    def create(self) -> None:
        values = {"MLOPS_DATABASE": f"{self.platform.connections.database_host}:{self.settings.database.port}"}
        if self.settings.monitoring.kind == "bundled":
            values["MLOPS_ALERTMANAGER"] = f"http://alertmanager:{PORTS['alertmanager']}"
        self.loop("2Gi", keyring({"secret": {"name": "client-key"}}), **values)


def keyring(*more: Any) -> Any:
    """The source of a volume with the public halves of all keys."""
    sources = [{"config_map": {"name": "keyring"}}, *more]
    return {"projected": {"sources": sources, "default_mode": 0o440}}


def signing_keys(role: str) -> Any:
    """The same with the private half of one role."""
    return keyring({"secret": {"name": f"signing-{role}"}})
