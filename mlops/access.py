"""API keys: an append-only log in the bucket holds their hashes, so that every app sees a new one within seconds."""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, Field, ValidationError

from mlops.append_log import AppendLog
from mlops.errors import UserError, VerificationError, explain
from mlops.store import Store

Scope = Literal["predict", "outcomes", "status", "analysis"]
CLIENT: tuple[Scope, ...] = ("predict", "outcomes", "status")  # of the key that an environment makes for its user


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


class Refused(Exception):  # noqa: N818 (it is one answer of several)
    """A request that no key opens: `reason` is a fixed word for metrics, `status` HTTP's; `wait` in seconds, of a limit."""

    def __init__(self, reason: str, status: int, detail: str, wait: float = 0.0):
        super().__init__(detail)
        self.reason, self.status, self.detail, self.wait = reason, status, detail, wait


class _Allowance:
    """A token bucket: `per_second` requests on average; a burst of two seconds' worth, at least one."""

    def __init__(self, per_second: float):
        self.per_second, self.most, self.at = per_second, max(1.0, 2 * per_second), time.monotonic()
        self.tokens = self.most

    def take(self) -> float:
        """0 if there was a token, else the seconds until the next."""
        now = time.monotonic()
        self.tokens = min(self.most, self.tokens + (now - self.at) * self.per_second)
        self.at = now
        if self.tokens < 1:
            return (1 - self.tokens) / self.per_second
        self.tokens -= 1
        return 0


class Keys:
    """The keys of the access log, as a server holds them; `replace` is called when it grows."""

    def __init__(self) -> None:
        self._keys: dict[str, tuple[ApiKey, _Allowance]] = {}

    def replace(self, keys: Iterable[ApiKey]) -> None:
        """A limit holds over the arrival of other keys."""
        kept = self._keys
        self._keys = {
            key.id: (key, kept[key.id][1])
            if key.id in kept and kept[key.id][1].per_second == key.per_second
            else (key, _Allowance(key.per_second))
            for key in keys
        }

    def find(self, secret: str, scope: Scope) -> ApiKey:
        """The key of this secret. Raises Refused if there is none, or it does not open `scope` now."""
        key, allowance = self._keys.get(secret[6:14], (None, None)) if secret.startswith("mlops_") else (None, None)
        if key is None or allowance is None or not hmac.compare_digest(sha256(secret), key.sha256):
            raise Refused("unknown", 401, "unknown API key")
        if key.revoked:
            raise Refused("revoked", 401, "the API key was revoked")
        if key.expires and key.expires < datetime.now(UTC):
            raise Refused("expired", 401, "the API key has expired")
        if scope not in key.scopes:
            raise Refused("scope", 403, f"the API key lacks the scope {scope!r}")
        if wait := allowance.take():
            raise Refused("limit", 429, f"more than {key.per_second:g} requests/s with this API key", wait)
        return key


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


def ensure(store: Store, name: str, scopes: Sequence[Scope], per_second: float, secret: str) -> None:
    """That there is a key of this secret with these scopes; nothing else of one that exists changes."""
    own = {key.sha256: key for key in read(store)}.get(sha256(secret))
    if own is None:
        new(store, name, scopes, per_second, secret=secret)
    elif missing := [scope for scope in scopes if scope not in own.scopes]:
        wider = own.model_copy(update={"scopes": [*own.scopes, *missing]})
        _append(store, lambda keys: [wider if key.id == wider.id else key for key in keys])


def revoke(store: Store, key_id: str) -> None:
    if key_id not in {key.id for key in read(store)}:
        raise UserError("key", key_id, "is not an API key; see `mlops api-key list`")
    _append(store, lambda keys: [k.model_copy(update={"revoked": k.revoked or k.id == key_id}) for k in keys])
