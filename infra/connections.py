from __future__ import annotations

from typing import Any

from infra.ports import PORTS
from infra.provision import IDENTITIES, TRACKING_USERS
from infra.settings import Settings

_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_LOGIN = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
Secrets = dict[str, tuple[str, str]]  # variable → (Secret, key)


class Connections:
    """How workloads reach what is bundled or brought along: addresses as values, credentials as references to Secrets."""

    def __init__(self, settings: Settings):
        self._settings = settings
        bundled = settings.database.kind == "bundled"
        self.database_host = "database" if bundled else settings.database.host
        self.database_secret = "database" if bundled else settings.database.secret
        server = f"postgresql+psycopg://{settings.database.user}@{self.database_host}:{settings.database.port}"
        self.backend, self.auth = f"{server}/mlflow", f"{server}/mlflow_auth"  # the password is in PGPASSWORD
        self.tracking_url = settings.tracking.url or f"http://tracking:{PORTS['tracking']}"
        bundled_bucket = settings.bucket.kind == "bundled"
        self.endpoint = f"http://bucket:{PORTS['bucket']}" if bundled_bucket else settings.bucket.endpoint

    @property
    def serving(self) -> dict[str, Any]:
        """The app's settings."""
        return {
            "MLOPS_ENV": self._settings.environment,
            "MLOPS_MODEL": self._settings.model,
            "MLOPS_BUCKET": self._settings.bucket.url,
            "MLOPS_KEYRING": "/keys/keyring.json",
        }

    @property
    def values(self) -> dict[str, Any]:
        """What `mlops.environment.Environment` reads."""
        endpoint = f"http://proxy:{PORTS['proxy']}"
        return self.serving | {"MLOPS_ENDPOINT": endpoint, "MLOPS_TRACKING": self.tracking_url}

    @property
    def bucket_values(self) -> dict[str, str]:
        endpoint = {"AWS_ENDPOINT_URL": self.endpoint} if self.endpoint else {}
        return {"AWS_REGION": self._settings.bucket.region, **endpoint}

    def bucket_keys(self, identity: str) -> Secrets:
        """Without a Secret the workload's own identity counts, as on AWS."""
        bundled = self._settings.bucket.kind == "bundled"
        secret = f"bucket-{identity}" if bundled else self._settings.bucket.secret
        return {key: (secret, key) for key in _KEYS} if secret else {}

    def tracking_login(self, user: str) -> Secrets:
        bundled = self._settings.tracking.kind == "bundled"
        secret = f"tracking-{user}" if bundled else self._settings.tracking.secret
        return {key: (secret, key) for key in _LOGIN} if secret else {}

    def setup(self, step: str) -> tuple[dict[str, Any], Secrets]:
        """Values and Secrets of a step of `infra.provision`."""
        if step == "keys":
            return {"MLOPS_ENV": self._settings.environment}, {}
        if step == "bucket":
            return self.values | self.bucket_values, self._setup_bucket()
        users = {f"{user.upper()}_PASSWORD": (f"tracking-{user}", _LOGIN[1]) for user in TRACKING_USERS}
        passwords = {"PGPASSWORD": (self.database_secret, "password"), "ADMIN_PASSWORD": ("tracking-admin", "password")}
        return {"MLFLOW_BACKEND_STORE_URI": self.backend, "MLFLOW_AUTH_STORE_URI": self.auth}, passwords | users

    def _setup_bucket(self) -> Secrets:
        found: Secrets = {"CLIENT_KEY": ("client-key", "client.key")}
        if self._settings.bucket.kind == "bundled":  # the step creates its identities
            for identity in ("root", *IDENTITIES):
                found |= {key.replace("AWS", identity.upper()): (f"bucket-{identity}", key) for key in _KEYS}
        return found | self.bucket_keys("controller")
