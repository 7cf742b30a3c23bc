from infra.components.controller import signing_keys
from infra.ports import PORTS
from infra.workload import Workload, container, env, port, probe


class Approver(Workload):
    """Signs what the judge's verdicts ask for, and is where `mlops --env …` runs what is signed or hands out keys. It alone
    holds the key that approves models for this environment, and cannot read a row that a caller sent."""

    image_is_ours = True

    def create(self) -> None:
        connections, number = self.platform.connections, PORTS["approver"]
        self.service("metrics", headless=True)
        self.volume("scratch", size="8Gi")
        self.volume("keys", signing_keys("approve"))
        loop = container(
            "approver",
            self.settings.images.training,
            cpu="50m",
            memory="1Gi",
            command=["python", "-m", "monitoring.approver"],
            env=env(connections.values | {"HOME": "/tmp", "MLOPS_HOME": "/tmp/mlops"}, connections.secrets(self.name)),
            ports=[port("metrics", number)],
            mounts={"/tmp": "scratch", "/keys": "keys"},
            startup_probe=probe("/metrics", number, 2, 60),
            readiness_probe=probe("/metrics", number, 10),
            liveness_probe=probe("/metrics", number, 30, 4),
        )
        self.deployment(self.pod(loop, termination_grace_period_seconds=60), strategy={"type": "Recreate"})
