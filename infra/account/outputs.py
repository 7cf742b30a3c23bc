"""What infra/account makes in an AWS account, and the other programs read."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import pulumi
from pydantic.alias_generators import to_camel

PROJECT = "mlops-account"
PURPOSES = ("preview", "infrastructure", "deploy", "train", "promote")


@dataclass(frozen=True)
class Outputs:
    boundary: pulumi.Input[str]  # every role in the account has this permissions boundary
    approval_keys: Any  # by environment
    roles: Any  # by environment and purpose; empty without a repository
    repositories: Any  # by image
    state: pulumi.Input[str]  # URL of Pulumi's backend
    secrets_provider: pulumi.Input[str]

    @classmethod
    def of(cls, stack: str) -> Outputs:
        made = pulumi.StackReference(f"{pulumi.get_organization()}/{PROJECT}/{stack}")
        return cls(**{field.name: made.require_output(to_camel(field.name)) for field in fields(cls)})

    def export(self) -> None:
        for field in fields(self):
            pulumi.export(to_camel(field.name), getattr(self, field.name))
