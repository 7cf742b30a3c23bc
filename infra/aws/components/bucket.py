from typing import Any

import pulumi

from infra.aws.cloud import Cloud
from infra.aws.settings import Settings
from infra.component import Component

_OLD_VERSIONS_DAYS = 90


class Bucket(Component):
    """Models, releases and the prediction log: what must stay cannot be deleted, and no revision be written twice."""

    program: Cloud
    settings: Settings

    def create(self) -> None:
        cloud = self.program
        self.bucket_name: pulumi.Input[str] = cloud.bucket_name
        if self.settings.bucket.kind == "existing":
            return
        arn = cloud.arn("s3", cloud.bucket_name, region="", account="")
        kept = {"Action": ["s3:DeleteObject", "s3:DeleteObjectVersion"], "Resource": [f"{arn}/models/*"]}
        once = {"Action": "s3:PutObject", "Resource": [f"{arn}/models/*/releases/*"]}
        once["Condition"] = {"Null": {"s3:if-none-match": "true"}}
        denied = [once] if self.settings.unlock else [kept, once]
        rules = [_expire(folder) for folder in ("predictions", "outcomes", "data", "mlflow")]
        about: Any = {"rules": rules, "parent": self}
        bucket = cloud.bucket("bucket", cloud.bucket_name, cloud.data_key, cloud.locked, *denied, **about)
        self.bucket_name = bucket.bucket


def _expire(folder: str) -> dict[str, Any]:
    """What was replaced or deleted; no rule expires anything of models/."""
    return {
        "id": folder,
        "status": "Enabled",
        "filter": {"prefix": f"{folder}/"},
        "noncurrent_version_expiration": {"noncurrent_days": _OLD_VERSIONS_DAYS},
    }
