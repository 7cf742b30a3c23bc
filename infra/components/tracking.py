import pulumi

from infra.ports import PORTS
from infra.workload import Workload, container, env, port, probe

_AUTH = """\
[mlflow]
default_permission = EDIT
database_uri = {uri}
admin_username = admin
auth_cache_ttl_seconds = 60
"""  # passwords are slow to check on purpose; a minute's cache makes every call but the first fast


class Tracking(Workload):
    """MLflow with users. Artifacts pass through it, so that no client needs the bucket."""

    image_is_ours = True

    def create(self) -> None:
        connections, number = self.platform.connections, PORTS["tracking"]
        inside = [f"{self.name}:{number}", f"localhost:{number}", f"127.0.0.1:{number}", "localhost", "127.0.0.1"]
        hosts = [*filter(None, self.settings.tracking.hosts.split(",")), *inside]
        values = {
            "MLFLOW_BACKEND_STORE_URI": connections.backend,
            "MLFLOW_AUTH_CONFIG_PATH": "/etc/mlflow/auth.ini",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "HOME": "/tmp",
            **connections.bucket,
            **connections.database,
        }
        self.service("http")
        self.volume("scratch", size="4Gi")
        self.volume("config", self.config_map(f"{self.name}-auth", {"auth.ini": _AUTH.format(uri=connections.auth)}))
        serve = ["mlflow", "server", "--host", "0.0.0.0", "--port", str(number), "--workers", "2"]
        server = container(
            "mlflow",
            self.settings.images.mlflow,
            cpu="100m",
            memory="2Gi",
            command=[*serve, "--app-name", "basic-auth"],
            args=[
                "--artifacts-destination",
                pulumi.Output.concat(connections.bucket_url, "/mlflow"),
                "--allowed-hosts",
                ",".join(hosts),
            ],
            env=env(values, connections.secrets(self.name)),
            ports=[port("http", number)],
            mounts={"/tmp": "scratch", "/etc/mlflow": "config", **self.database_ca()},
            startup_probe=probe("/health", number, 3, 80),
            readiness_probe=probe("/health", number, 10),
            liveness_probe=probe("/health", number, 30, 5),
            lifecycle={"pre_stop": {"sleep": {"seconds": 5}}},  # new connections go elsewhere first
        )
        self.deployment(self.pod(server))
