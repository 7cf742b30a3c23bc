import json
from typing import Any

import pulumi
import pulumi_aws as aws

from infra.account.account import Account
from infra.component import Component

_IMAGES = ("app", "training", "mlflow")
# An environment names a digest that has a tag, and tags never move: only what lost its tag, or never had one, expires.
_LIFECYCLE: Any = {
    "rules": [{
        "rulePriority": 1,
        "description": "untagged",
        "selection": {"tagStatus": "untagged", "countType": "sinceImagePushed", "countUnit": "days", "countNumber": 30},
        "action": {"type": "expire"},
    }]
}  # fmt: skip


class Images(Component):
    """A repository for each image: shared, so that what was proven in one environment is what the next one runs."""

    program: Account

    def __init__(self, name: str, account: Account, key: pulumi.Input[str]):
        self.key = key
        super().__init__(name, account)

    def create(self) -> None:
        self.urls: dict[str, pulumi.Output[str]] = {}
        encryption: Any = [{"encryption_type": "KMS", "kms_key": self.key}]
        for image in _IMAGES:
            repository = aws.ecr.Repository(
                image,
                name=f"mlops-{image}",
                image_tag_mutability="IMMUTABLE",
                image_scanning_configuration={"scan_on_push": True},
                encryption_configurations=encryption,
                opts=pulumi.ResourceOptions(parent=self, protect=True),
            )
            aws.ecr.LifecyclePolicy(image, repository=repository.name, policy=json.dumps(_LIFECYCLE), opts=self.child)
            self.urls[image] = repository.repository_url
