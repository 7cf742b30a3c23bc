from dataclasses import dataclass, fields
from typing import ClassVar, Self

import pulumi
from pydantic.alias_generators import to_camel


@dataclass(frozen=True)
class Outputs:
    """What a program exports, and another one reads by StackReference."""

    PROJECT: ClassVar[str]

    @classmethod
    def of(cls, stack: str) -> Self:
        made = pulumi.StackReference(f"{pulumi.get_organization()}/{cls.PROJECT}/{stack}")
        return cls(**{field.name: made.require_output(to_camel(field.name)) for field in fields(cls)})

    def export(self) -> None:
        for field in fields(self):
            pulumi.export(to_camel(field.name), getattr(self, field.name))
