"""API keys: an append-only log in the bucket holds their hashes, so that every app sees a new one within seconds."""

import hashlib
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, Field, ValidationError

from mlops.append_log import AppendLog
from mlops.errors import UserError, VerificationError, explain
from mlops.store import Store

Scope = Literal["predict", "outcomes"]


class ApiKey(BaseModel):
    id: str
    name: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    scopes: Annotated[list[Scope], Field(min_length=1)]
    per_second: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    created: AwareDatetime
    expires: AwareDatetime | None = None
    revoked: bool = False


class _Access(BaseModel):
    keys: list[ApiKey]
    nonce: str


def access_log(store: Store) -> AppendLog:
    return AppendLog(store, "access")


def parse(revision: int, raw: bytes) -> list[ApiKey]:
    try:
        return _Access.model_validate_json(raw).keys
    except ValidationError as error:
        raise VerificationError("access", f"access {revision}", "unreadable", explain(error)[0][:300]) from None


def newest(store: Store) -> tuple[int, list[ApiKey]]:
    """The newest readable record and its revision; an unreadable one counts as never written."""
    log = access_log(store)
    for revision in range(log.last(), 0, -1):
        with suppress(VerificationError):
            return revision, parse(revision, log.get(revision) or b"")
    return 0, []


def read(store: Store) -> list[ApiKey]:
    return newest(store)[1]


def sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _append(store: Store, change: Callable[[list[ApiKey]], list[ApiKey]]) -> None:
    nonce = secrets.token_hex(8)
    access_log(store).append(lambda _: _Access(keys=change(read(store)), nonce=nonce).model_dump_json().encode())


def new_secret() -> str:
    return f"mlops_{secrets.token_hex(4)}_{secrets.token_urlsafe(32)}"


def new(
    store: Store, name: str, scopes: Sequence[str], per_second: float,
    expires: datetime | None = None, secret: str | None = None,
) -> tuple[ApiKey, str]:  # fmt: skip
    """The key itself is returned this once and kept nowhere. `secret`: one that exists already."""
    secret = secret or new_secret()
    fields: dict[str, object] = {
        "id": secret.split("_")[1],
        "name": name,
        "sha256": sha256(secret),
        "created": datetime.now(UTC),
    }
    fields |= {"scopes": scopes, "per_second": per_second, "expires": expires}
    try:
        key = ApiKey.model_validate(fields)
    except ValidationError as error:
        raise UserError("key", name, "; ".join(explain(error))) from None
    _append(store, lambda keys: [*keys, key])
    return key, secret


def revoke(store: Store, key_id: str) -> None:
    if key_id not in {key.id for key in read(store)}:
        raise UserError("key", key_id, "is not an API key; see `mlops api-key list`")
    _append(store, lambda keys: [k.model_copy(update={"revoked": k.revoked or k.id == key_id}) for k in keys])
