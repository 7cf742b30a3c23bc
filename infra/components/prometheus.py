from pathlib import Path

from infra.ports import PORTS
from infra.workload import Workload, container, port, probe

FILES = Path(__file__).resolve().parents[2] / "monitoring"


def rules() -> dict[str, str]:
    return {path.name: path.read_text("utf-8") for path in sorted((FILES / "prometheus" / "rules").glob("*.yaml"))}


class Prometheus(Workload):
    """Finds the pods by DNS, so it needs no rights in the cluster."""

    def create(self) -> None:
        settings, number = self.settings.monitoring, PORTS["prometheus"]
        config = (
            (FILES / "prometheus" / "prometheus.yaml").read_text("utf-8").replace("$NAMESPACE", self.settings.namespace)
        )
        self.service("http")
        self.volume("config", self.config_map(self.name, {"prometheus.yaml": config}))
        self.volume("rules", self.config_map(f"{self.name}-rules", rules()))
        self.volume("scratch")
        server = container(
            "prometheus",
            self.settings.images.third_party("prometheus"),
            cpu="100m",
            memory="1Gi",
            command=["/bin/prometheus", "--config.file=/etc/prometheus/prometheus.yaml", "--storage.tsdb.path=/data"],
            args=[f"--storage.tsdb.retention.time={settings.retention}"],
            ports=[port("http", number)],
            mounts={"/data": "data", "/etc/prometheus": "config", "/etc/prometheus-rules": "rules", "/tmp": "scratch"},
            startup_probe=probe("/-/ready", number, 2, 150),
            readiness_probe=probe("/-/ready", number, 5),
            liveness_probe=probe("/-/healthy", number, 15, 6),
        )
        self.stateful_set(self.pod(server, termination_grace_period_seconds=60), settings.size)
