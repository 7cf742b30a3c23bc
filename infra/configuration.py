"""Settings of a Pulumi program: what its `Pulumi.yaml` declares and the stack's file changes, checked and typed."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Self

import pulumi
from pulumi.runtime.config import CONFIG, get_config_env
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from mlops.errors import explain

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
Labels = Annotated[str, Field(pattern=r"^([\w./-]+=[\w.-]+(,[\w./-]+=[\w.-]+)*)?$")]
PROTECTED = ("staging", "prod")  # environments whose data takes an `unlock` to be destroyed


class Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, coerce_numbers_to_str=True)


class ProgramSettings(Group):
    environment: Name  # the stack's name

    def problems(self) -> dict[str, bool]:
        """What does not fit together, and whether that is so here."""
        return {}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if problems := [problem for problem, wrong in self.problems().items() if wrong]:
            raise ValueError("; ".join(problems))
        return self

    @classmethod
    def load(cls, computed: Mapping[str, Callable[[], Any]] = MappingProxyType({})) -> Self:
        """Of the current stack; what is `computed`, by path, stands for a setting left empty. Raises pulumi.RunError that
        lists every problem."""
        config = pulumi.Config()
        values: dict[str, Any] = {"environment": pulumi.get_stack()}
        for key in CONFIG.get() or get_config_env():
            if (name := key.removeprefix(f"{config.name}:")) != key:
                value = config.require(name)
                values[name] = config.require_object(name) if value.startswith("{") else value
        for path, value in computed.items():
            group, _, name = path.rpartition(".")
            if not (where := values[group] if group else values).get(name):
                where[name] = value()
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            lines = [f"settings of {pulumi.get_stack()}: fix each problem listed below", *explain(error)]
            raise pulumi.RunError("\n  ".join(lines)) from None


def pairs(labels: str) -> dict[str, str]:
    """Of `KEY=VALUE,KEY=VALUE`."""
    return dict(pair.split("=", 1) for pair in labels.split(",") if pair)
