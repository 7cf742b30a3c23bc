from __future__ import annotations

import getpass
import os
import secrets
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from mlops.errors import Refused
from mlops.journal import Journal
from mlops.store import Store

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Mode = Literal["full", "blue-green", "canary", "ab", "shadow"]


class Release(BaseModel):
    """One record of the release log: from `at` (or `activate_at`) on, this is what serves."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epoch: int = Field(ge=1)
    at: AwareDatetime
    by: str
    why: str
    mode: Mode
    champion: Digest
    challenger: Digest | None = None
    weight: float | None = Field(default=None, ge=0, le=1)
    activate_at: AwareDatetime | None = None
    segment: dict[str, str] | None = None
    nonce: str


def who() -> str:
    """Whose name a record bears: MLOPS_BY, or the user's; a container's user may have none."""
    try:
        return os.environ.get("MLOPS_BY") or getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


def now() -> datetime:
    return datetime.now(UTC)


def journal(store: Store, model: str) -> Journal:
    return Journal(store, f"models/{model}/releases")


def parse(epoch: int, raw: bytes) -> Release:
    try:
        release = Release.model_validate_json(raw)
    except ValidationError as error:
        fault = error.errors()[0]
        raise Refused("record", f"release {epoch}", ".".join(map(str, fault["loc"])), fault["msg"]) from None
    if release.epoch != epoch:
        raise Refused("record", f"release {epoch}", release.epoch, "is the epoch inside, the name says another")
    return release


def read(store: Store, model: str) -> list[Release]:
    """The valid records, oldest first; an unreadable one counts as never written."""
    log = []
    for epoch, raw in journal(store, model).read():
        try:
            log.append(parse(epoch, raw))
        except Refused:
            continue
    return log


def serving(log: Iterable[Release], at: datetime) -> Release | None:
    """The record in force at `at`: the newest one written and active by then. Every part asks this function."""
    current = None
    for release in log:
        if release.at <= at and (release.activate_at is None or release.activate_at <= at):
            current = release
    return current


def append(store: Store, model: str, champion: str, why: str, mode: Mode = "full", by: str | None = None) -> Release:
    """Write the next epoch (compare-and-set by put-if-absent)."""
    nonce, by = secrets.token_hex(8), by or who()
    at = now()

    def record(epoch: int) -> Release:
        return Release(epoch=epoch, at=at, by=by, why=why, mode=mode, champion=champion, nonce=nonce)

    return record(journal(store, model).append(lambda epoch: record(epoch).model_dump_json(exclude_none=True).encode()))
