from __future__ import annotations

from typing import Any

from infra.components import bucket, proxy, tracking
from infra.settings import Settings
from infra.workload import env
from mlops.bootstrap import IDENTITIES, TRACKING_USERS

_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_LOGIN = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")


class Connections:
    """How workloads reach what is bundled or brought along: addresses as values, credentials as references to Secrets."""

    def __init__(self, settings: Settings):
        self._settings = settings
        bundled = settings.database.kind == "bundled"
        self.database_host = "database" if bundled else settings.database.host
        self.database_secret = "database" if bundled else settings.database.secret
        server = f"postgresql+psycopg://{settings.database.user}@{self.database_host}:{settings.database.port}"
        self.backend, self.auth = f"{server}/mlflow", f"{server}/mlflow_auth"  # the password is in PGPASSWORD
        self.tracking_url = f"http://tracking:{tracking.PORT}" if settings.tracking.kind == "bundled" else settings.tracking.url
        self.endpoint = f"http://bucket:{bucket.PORT}" if settings.bucket.kind == "bundled" else settings.bucket.endpoint

    @property
    def values(self) -> dict[str, Any]:
        """What `mlops.environment.Environment` reads, and the app's settings of the same names."""
        return {
            "MLOPS_ENV": self._settings.environment,
            "MLOPS_MODEL": self._settings.model,
            "MLOPS_BUCKET": self._settings.bucket.url,
            "MLOPS_KEYRING": "/keys/keyring.json",
            "MLOPS_ENDPOINT": f"http://proxy:{proxy.PORT}",
            "MLOPS_TRACKING": self.tracking_url,
        }

    @property
    def bucket_values(self) -> dict[str, str]:
        return {"AWS_REGION": self._settings.bucket.region, **({"AWS_ENDPOINT_URL": self.endpoint} if self.endpoint else {})}

    def bucket(self, identity: str) -> list[Any]:
        """Without a Secret the workload's own identity counts, as on AWS."""
        return env(self.bucket_values, self._bucket_keys(identity))

    def _bucket_keys(self, identity: str) -> dict[str, tuple[str, str]]:
        secret = f"bucket-{identity}" if self._settings.bucket.kind == "bundled" else self._settings.bucket.secret
        return {key: (secret, key) for key in _KEYS} if secret else {}

    def tracking(self, user: str) -> list[Any]:
        secret = f"tracking-{user}" if self._settings.tracking.kind == "bundled" else self._settings.tracking.secret
        return env({}, {key: (secret, key) for key in _LOGIN} if secret else {})

    def setup_bucket(self) -> dict[str, tuple[str, str]]:
        """Secrets of the step that sets the bucket up: in a bundled one it makes the identities."""
        found = {"CLIENT_KEY": ("client-key", "client.key")}
        if self._settings.bucket.kind == "bundled":
            for identity in ("root", *IDENTITIES):
                found |= {key.replace("AWS", identity.upper()): (f"bucket-{identity}", key) for key in _KEYS}
        return found | self._bucket_keys("controller")

    def setup_database(self) -> dict[str, tuple[str, str]]:
        users = {f"{user.upper()}_PASSWORD": (f"tracking-{user}", _LOGIN[1]) for user in TRACKING_USERS}
        return {"PGPASSWORD": (self.database_secret, "password"), "ADMIN_PASSWORD": ("tracking-admin", "password"), **users}
