from dataclasses import dataclass
from functools import cached_property

from mlops.keys import Keyring
from mlops.releases import ReleaseLog
from mlops.store import Store

SNAPSHOT = "data/{}.parquet"  # by the model's name: its training data, for trainings that cannot reach the source


@dataclass(frozen=True)
class RegisteredModel:
    """One model in one environment: its folder in the bucket, and the keys that decide what of it is trusted."""

    name: str
    environment: str
    store: Store
    keyring: Keyring

    @property
    def folder(self) -> str:
        return f"models/{self.name}"

    @cached_property
    def releases(self) -> ReleaseLog:
        return ReleaseLog(self.store, self.name, self.keyring, self.environment)
