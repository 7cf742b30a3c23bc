"""What infra/account makes in an AWS account, and the other programs read."""

from dataclasses import dataclass
from typing import Any

import pulumi

from infra import outputs

PURPOSES = ("preview", "infrastructure", "build", "deploy", "train", "promote")


@dataclass(frozen=True)
class Outputs(outputs.Outputs):
    PROJECT = "mlops-account"

    boundary: pulumi.Input[str]  # every role of an environment has this permissions boundary
    approval_keys: Any  # by environment
    delivery_keys: Any  # by environment; empty without a repository
    roles: Any  # by environment and purpose; empty without a repository
    repositories: Any  # by image
    state: pulumi.Input[str]  # URL of Pulumi's backend
    secrets_provider: pulumi.Input[str]
