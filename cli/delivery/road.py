"""The road of this repository: `environments/delivery.yaml`, and beside it the public keys of those who attest on it."""

from functools import cached_property
from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mlops.environment import ROOT
from mlops.errors import UserError, explain
from mlops.keys import Keyring
from mlops.store import Store

FILE, KEYRING = "environments/delivery.yaml", "environments/keyring.json"
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,30}$")]


class Road(BaseModel):
    model_config = ConfigDict(extra="forbid", ignored_types=(cached_property,))

    name: Name
    repository: Annotated[str, Field(pattern=r"^([\w.-]+/[\w.-]+)?$")]
    environments: Annotated[list[Name], Field(min_length=1)]
    store: str
    registry: str
    replay: dict[str, str]  # environment → window

    @classmethod
    def load(cls, root: Path = ROOT) -> Self:
        try:
            return cls.model_validate(yaml.safe_load((root / FILE).read_text("utf-8")))
        except ValidationError as error:
            raise UserError("delivery", FILE, "; ".join(explain(error))) from None
        except (OSError, yaml.YAMLError) as error:
            raise UserError("delivery", FILE, f"cannot be read: {str(error).splitlines()[0]}") from None

    @cached_property
    def bucket(self) -> Store:
        return Store(self.store if "://" in self.store else str(ROOT / self.store))

    @property
    def keyring(self) -> Keyring:
        """Private halves are in KMS, or beside the store if that is a folder."""
        return Keyring(ROOT / KEYRING, private=None if "://" in self.store else ROOT / self.store / "keys")

    def before(self, environment: str) -> str | None:
        """The environment that must have passed what comes here. Raises UserError for one that is not on the road."""
        if environment not in self.environments:
            raise UserError("environment", environment, f"is not one of {', '.join(self.environments)} in {FILE}")
        return dict(zip(self.environments[1:], self.environments, strict=False)).get(environment)

    @property
    def last(self) -> str:
        return self.environments[-1]
