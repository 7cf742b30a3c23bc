from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_kubernetes as k8s

from infra.workload import config_map, container, env, files, metadata, pod, probe, scratch, selector, service, service_account

PORT = 5000


@dataclass(frozen=True, kw_only=True)
class TrackingArgs:
    """`backend`, `auth`: URIs of the two databases, without the password; `bucket`: environment of the identity `tracking`."""

    namespace: pulumi.Input[str]
    image: str
    pull_secret: str
    backend: str
    auth: str
    database_secret: str
    artifacts: str
    bucket: list[Any]
    hosts: list[str]


class Tracking(pulumi.ComponentResource):
    """MLflow with users. Artifacts pass through it, so that no client needs the bucket."""

    def __init__(self, name: str, args: TrackingArgs, opts: pulumi.ResourceOptions | None = None):
        super().__init__("mlops:platform:Tracking", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        service_account(name, args.namespace, child)
        self.service = service(name, args.namespace, {"http": PORT}, child)
        # Passwords are slow to check on purpose; a minute's memory makes every call but the first one quick.
        ini = f"[mlflow]\ndefault_permission = EDIT\ndatabase_uri = {args.auth}\nadmin_username = admin\nauth_cache_ttl_seconds = 60\n"
        config = config_map(f"{name}-auth", args.namespace, {"auth.ini": ini}, child)
        hosts = ",".join([*args.hosts, f"{name}:{PORT}", f"localhost:{PORT}", f"127.0.0.1:{PORT}", "localhost", "127.0.0.1"])
        server = container(
            "mlflow",
            args.image,
            cpu="100m",
            memory="2Gi",
            command=["mlflow", "server", "--host", "0.0.0.0", "--port", str(PORT), "--workers", "2", "--app-name", "basic-auth"],  # noqa: S104
            args=["--artifacts-destination", args.artifacts, "--allowed-hosts", hosts],
            env=[
                *env(
                    {
                        "MLFLOW_BACKEND_STORE_URI": args.backend,
                        "MLFLOW_AUTH_CONFIG_PATH": "/etc/mlflow/auth.ini",
                        "MLFLOW_DISABLE_TELEMETRY": "true",
                        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                        "HOME": "/tmp",  # noqa: S108
                    },
                    {
                        "PGPASSWORD": (args.database_secret, "password"),
                        "MLFLOW_AUTH_ADMIN_PASSWORD": ("tracking-admin", "password"),
                        "MLFLOW_FLASK_SERVER_SECRET_KEY": ("tracking-admin", "secret-key"),
                    },
                ),
                *args.bucket,
            ],
            ports=[{"name": "http", "container_port": PORT}],
            mounts={"/tmp": "scratch", "/etc/mlflow": "config"},  # noqa: S108
            startup_probe=probe("/health", PORT, period_seconds=3, failure_threshold=80),
            readiness_probe=probe("/health", PORT, period_seconds=10),
            liveness_probe=probe("/health", PORT, period_seconds=30, failure_threshold=5),
        )
        self.deployment = k8s.apps.v1.Deployment(
            name,
            metadata=metadata(name, args.namespace),
            spec={
                "replicas": 1,
                "selector": selector(name),
                "template": pod(name, [server], [scratch(size="4Gi"), files("config", config)], args.pull_secret),
            },
            opts=child,
        )
        self.register_outputs({})
