from typing import Any

from infra.ports import PORTS
from infra.provision import SECRETS, TRACKING_USERS, Secrets
from infra.settings import Settings


class Connections:
    """How workloads reach what is bundled or brought along: addresses as values, credentials as references to Secrets."""

    def __init__(self, settings: Settings):
        self._settings = settings
        bundled = {kind: getattr(settings, kind).kind == "bundled" for kind in ("bucket", "database", "tracking")}
        self.database_host = "database" if bundled["database"] else settings.database.host
        server = f"postgresql+psycopg://{settings.database.user}@{self.database_host}:{settings.database.port}"
        self.backend, self.auth = f"{server}/mlflow", f"{server}/mlflow_auth"  # the password is in PGPASSWORD
        self.tracking = f"http://tracking:{PORTS['tracking']}" if bundled["tracking"] else settings.tracking.url
        endpoint = f"http://bucket:{PORTS['bucket']}" if bundled["bucket"] else settings.bucket.endpoint
        self.bucket = {"AWS_REGION": settings.bucket.region} | ({"AWS_ENDPOINT_URL": endpoint} if endpoint else {})
        self.serving = {
            "MLOPS_ENV": settings.environment,
            "MLOPS_MODEL": settings.model,
            "MLOPS_BUCKET": settings.bucket.url,
            "MLOPS_KEYRING": "/keys/keyring.json",
            **self.bucket,
        }
        self.values = self.serving | {
            "MLOPS_ENDPOINT": f"http://proxy:{PORTS['proxy']}",
            "MLOPS_TRACKING": self.tracking,
        }

    def setup(self, step: str) -> dict[str, Any]:
        """The values of a step of `infra.provision`."""
        databases = {"MLFLOW_BACKEND_STORE_URI": self.backend, "MLFLOW_AUTH_STORE_URI": self.auth}
        keys = {"MLOPS_ENV": self._settings.environment}
        return {"keys": keys, "bucket": self.values, "database": databases}[step]

    def secrets(self, workload: str) -> Secrets:
        """What is brought along has a Secret of its own, or none: then the workload's identity counts, as on AWS."""
        found: Secrets = {}
        for variable, (secret, key) in SECRETS[workload].items():
            external = self._external(secret)
            if external is None:
                found[variable] = (secret, key)
            elif external and not (secret.startswith("bucket-") and not variable.startswith("AWS_")):
                found[variable] = (external, key)
        return found

    def _external(self, secret: str) -> str | None:
        """The Secret that stands for a bundled one; None if that is there."""
        users = {f"tracking-{user}": "tracking" for user in TRACKING_USERS}
        kind = "bucket" if secret.startswith("bucket-") else ({"database": "database"} | users).get(secret)
        group = getattr(self._settings, kind) if kind else None
        return group.secret if group is not None and group.kind == "external" else None
