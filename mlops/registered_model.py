from dataclasses import dataclass, field
from functools import cached_property

from mlops.errors import UserError
from mlops.keys import Keyring
from mlops.log_key import LogKey
from mlops.releases import ReleaseLog
from mlops.store import Store


@dataclass(frozen=True)
class RegisteredModel:
    """One model in one environment: its folder in the bucket, the keys that decide what of it is trusted, and the secret
    behind its log key."""

    name: str
    environment: str
    store: Store
    keyring: Keyring
    log_secret: str = field(default="", repr=False)

    @property
    def folder(self) -> str:
        return f"models/{self.name}"

    @cached_property
    def releases(self) -> ReleaseLog:
        return ReleaseLog(self.store, self.name, self.keyring, self.environment)

    @cached_property
    def log_key(self) -> LogKey:
        if not self.log_secret:
            raise UserError("MLOPS_LOG_KEY", "", "set it to the secret with which the app hashes; see docs/keys.md")
        return LogKey(self.log_secret, self.name)
