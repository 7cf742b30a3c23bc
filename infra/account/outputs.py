"""What infra/account makes in an AWS account, and the other programs read."""

from dataclasses import dataclass
from typing import Any

import pulumi

from infra import outputs

PURPOSES = ("preview", "infrastructure", "build", "deploy", "train", "promote", "watch")


@dataclass(frozen=True)
class Outputs(outputs.Outputs):
    PROJECT = "mlops-account"

    boundary: Any  # by environment: every role of it has this permissions boundary
    approval_keys: Any  # by environment
    delivery_keys: Any  # by environment; empty without a repository
    roles: Any  # by environment and purpose; empty without a repository
    repositories: Any  # by image
    state: pulumi.Input[str]  # URL of Pulumi's backend
    secrets_provider: pulumi.Input[str]
