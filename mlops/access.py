"""API keys: only their hashes are stored, as a journal in the bucket, so that every app sees a new one within seconds."""

from __future__ import annotations

import hashlib
import secrets
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, Field, TypeAdapter, ValidationError

from mlops.errors import Fault, Refused
from mlops.journal import Journal
from mlops.store import Store

Scope = Literal["predict", "outcomes"]


class ApiKey(BaseModel):
    id: str
    name: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    scopes: list[Scope]
    per_second: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    created: AwareDatetime
    expires: AwareDatetime | None = None
    revoked: bool = False


class _Access(BaseModel):
    keys: list[ApiKey]
    nonce: str


_access = TypeAdapter(_Access)


def journal(store: Store) -> Journal:
    return Journal(store, "access")


def parse(epoch: int, raw: bytes) -> list[ApiKey]:
    try:
        return _access.validate_json(raw).keys
    except ValidationError as error:
        fault = error.errors()[0]
        raise Refused("access", f"access {epoch}", ".".join(map(str, fault["loc"])), fault["msg"]) from None


def newest(store: Store) -> tuple[int, list[ApiKey]]:
    """The newest record that can be read, and its epoch; one that cannot counts as never written."""
    log = journal(store)
    for epoch in range(log.last(), 0, -1):
        with suppress(Refused):
            return epoch, parse(epoch, log.get(epoch) or b"")
    return 0, []


def read(store: Store) -> list[ApiKey]:
    return newest(store)[1]


def sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _append(store: Store, change: object) -> None:
    nonce = secrets.token_hex(8)
    journal(store).append(lambda _: _Access(keys=change(read(store)), nonce=nonce).model_dump_json().encode())  # ty: ignore


def new_secret() -> str:
    return f"mlops_{secrets.token_hex(4)}_{secrets.token_urlsafe(32)}"


def new(
    store: Store, name: str, scopes: list[Scope], per_second: float, expires: datetime | None = None, secret: str | None = None
) -> tuple[ApiKey, str]:
    """The key itself is returned this once and kept nowhere. `secret`: one that was made before."""
    if not scopes:
        raise Fault("scope", [], "name at least one: predict, outcomes")
    if not per_second > 0:
        raise Fault("per_second", per_second, "allow more than 0 requests a second")
    secret = secret or new_secret()
    key_id = secret.split("_")[1]
    key = ApiKey(
        id=key_id, name=name, sha256=sha256(secret), scopes=scopes, per_second=per_second, created=datetime.now(UTC), expires=expires
    )
    _append(store, lambda keys: [*keys, key])
    return key, secret


def revoke(store: Store, key_id: str) -> None:
    if key_id not in {key.id for key in read(store)}:
        raise Fault("key", key_id, "is not among the API keys; see `mlops key list`")
    _append(store, lambda keys: [k.model_copy(update={"revoked": k.revoked or k.id == key_id}) for k in keys])
