from typing import Any

import pulumi

from infra.aws.outputs import Outputs
from infra.identities import SECRETS, TRACKING_USERS, Secrets
from infra.ports import PORTS
from infra.settings import Database, Settings

CA = "/database-ca"  # where `database.ca` is mounted


class Connections:
    """How workloads reach what is bundled, made by infra/aws or brought along: addresses as values, credentials as
    references to Secrets."""

    def __init__(self, settings: Settings, aws: Outputs | None):
        self._settings, self._aws = settings, aws
        database, bucket, tracking = settings.database, settings.bucket, settings.tracking
        # An RDS instance has the same name inside the cluster as a bundled database: infra/components/eks.py
        self.database_host = database.host if database.kind == "external" else "database"
        self.backend, self.auth = "postgresql+psycopg:///mlflow", "postgresql+psycopg:///mlflow_auth"
        host = aws.database_host if aws and database.kind == "rds" else self.database_host  # as its certificate has it
        self.database: dict[str, pulumi.Input[str]] = {"PGHOST": host, "PGPORT": str(database.port)} | _tls(database)
        if database.kind == "external":  # else it is in a Secret, as PGPASSWORD is
            self.database["PGUSER"] = database.user
        self.tracking = f"http://tracking:{PORTS['tracking']}" if tracking.kind == "bundled" else tracking.url
        endpoint = f"http://bucket:{PORTS['bucket']}" if bucket.kind == "bundled" else bucket.endpoint
        region: pulumi.Input[str] = bucket.region
        self.bucket_url: pulumi.Input[str] = bucket.url
        if aws and bucket.kind == "s3":
            self.bucket_url, region, endpoint = aws.bucket_url, aws.region, ""
        # boto3 reads the second name only
        self.bucket: dict[str, pulumi.Input[str]] = {"AWS_REGION": region, "AWS_DEFAULT_REGION": region}
        self.bucket |= {"AWS_ENDPOINT_URL": endpoint} if endpoint else {}
        self.serving: dict[str, Any] = {
            "MLOPS_ENV": settings.environment,
            "MLOPS_MODEL": settings.model,
            "MLOPS_BUCKET": self.bucket_url,
            "MLOPS_KEYRING": "/keys/keyring.json",
            **self.bucket,
        }
        self.values = self.serving | {
            "MLOPS_ENDPOINT": f"http://proxy:{PORTS['proxy']}",
            "MLOPS_TRACKING": self.tracking,
        }

    def setup(self, step: str) -> dict[str, Any]:
        """The values of a step of `infra.provision`."""
        region = {key: value for key, value in self.bucket.items() if key != "AWS_ENDPOINT_URL"}
        keys = {"MLOPS_ENV": self._settings.environment} | region
        databases: dict[str, Any] = {"MLFLOW_BACKEND_STORE_URI": self.backend, "MLFLOW_AUTH_STORE_URI": self.auth}
        databases |= self.database
        if self._aws and self._settings.bucket.kind == "s3":  # else the credentials are the bucket's, no identity's
            keys |= {"MLOPS_APPROVAL_KEY": self._aws.approval_key}
        if self._aws and self._settings.database.kind == "rds":
            databases |= {"DATABASE_ADMIN_ARN": self._aws.database_secret} | region
        elif self._settings.database.kind == "bundled":
            databases |= {"DATABASE_ADMIN": self._settings.database.user}
        return {"keys": keys, "bucket": self.values, "database": databases}[step]

    def secrets(self, workload: str) -> Secrets:
        """What is brought along has a Secret of its own, or none: then the workload's identity counts, as on AWS."""
        found: Secrets = {}
        for variable, (secret, key) in SECRETS[workload].items():
            replaced = self._replaced(secret, variable)
            if replaced is None:
                found[variable] = (secret, key)
            elif replaced:
                found[variable] = (replaced, key)
        return found

    def _replaced(self, name: str, variable: str) -> str | None:
        """The Secret that stands for a bundled one; empty: there is none; None: the bundled one is there."""
        settings = self._settings
        if name.startswith("bucket-"):
            external = _own(settings.bucket.secret, name) if variable.startswith("AWS_") else ""
            return {"bundled": None, "s3": "", "external": external}[settings.bucket.kind]
        if name == "database":  # of its administrator
            return None if settings.database.kind == "bundled" else ""
        if name == "database-user" and settings.database.kind == "external":
            return settings.database.secret if variable == "PGPASSWORD" else ""
        if name in {f"tracking-{user}" for user in TRACKING_USERS} and settings.tracking.kind == "external":
            return _own(settings.tracking.secret, name)
        return None


def _own(brought: str, bundled: str) -> str:
    """What stands for `bucket-serving`: a Secret that no other workload has either."""
    return brought and f"{brought}-{bundled.partition('-')[2]}"


def _tls(database: Database) -> dict[str, str]:
    if database.kind == "bundled":
        return {}
    if database.kind == "rds" and not database.ca:  # its authority is no public one
        return {"PGSSLMODE": "require"}
    authority = f"{CA}/ca.pem" if database.ca else "/etc/ssl/certs/ca-certificates.crt"
    return {"PGSSLMODE": database.sslmode, "PGSSLROOTCERT": authority}
