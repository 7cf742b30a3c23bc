from __future__ import annotations

import getpass
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, get_args

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from mlops.errors import Refused
from mlops.journal import Journal
from mlops.store import Store

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Mode = Literal["full", "blue-green", "canary", "ab", "shadow"]
MODES = get_args(Mode)


class Release(BaseModel):
    """One record of the release log: from `at` (or `activate_at`) on, this is what serves.

    full: the champion answers. shadow: the challenger scores the same rows, unseen. canary, ab: it answers `weight` of the
    entities (of those in `segment`, if there is one). blue-green: the challenger is loaded, to take over at one instant.
    """

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
    experiment: str | None = None  # one name for all weights of a trial: an entity keeps its model while they rise
    hold: bool = False  # the controller takes no step forward
    nonce: str

    @model_validator(mode="after")
    def _whole(self) -> Release:
        needed = {"full": (), "shadow": ("challenger",), "blue-green": ("challenger",)}.get(self.mode, ("challenger", "weight"))
        if missing := [name for name in needed if getattr(self, name) is None]:
            raise ValueError(f"mode {self.mode} needs a {missing[0]}")
        if self.weight is not None and self.mode not in ("canary", "ab"):
            raise ValueError(f"mode {self.mode} has no weight: the champion answers all")
        if self.challenger == self.champion:
            raise ValueError("champion and challenger are one model")
        return self

    @property
    def tried(self) -> bool:
        """Whether two models score the same rows."""
        return self.mode in ("shadow", "canary", "ab")

    @property
    def on_trial(self) -> str | None:
        return self.challenger if self.tried else None


def described(release: Release) -> str:
    """For people: which model, in which mode, beside which other."""
    champion, challenger = release.champion[:12], (release.challenger or "")[:12]
    if release.mode == "full":
        return champion
    if release.mode == "blue-green":
        return f"{champion} (blue-green, {'before it' if release.activate_at else 'preparing'} {challenger})"
    to = f" for {', '.join(map('='.join, release.segment.items()))}" if release.segment else ""
    share = f" {release.weight:.0%}" if release.weight is not None else ""
    return f"{champion}, {release.mode}{share}{to} {challenger}{', held' if release.hold else ''}"


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


class Follower:
    """The valid records, oldest first; asked again, it reads what is new: a record never changes."""

    def __init__(self, store: Store, model: str):
        self._journal, self._log, self._epoch = journal(store, model), list[Release](), 0

    def read(self) -> list[Release]:
        while (raw := self._journal.get(self._epoch + 1)) is not None:
            self._epoch += 1
            with suppress(Refused):
                self._log.append(parse(self._epoch, raw))
        return self._log


def serving(log: Iterable[Release], at: datetime) -> Release | None:
    """The record in force at `at`: the newest one written and active by then. Every part asks this function."""
    current = None
    for release in log:
        if release.at <= at and (release.activate_at is None or release.activate_at <= at):
            current = release
    return current


def append(store: Store, model: str, champion: str, why: str, mode: Mode = "full", after: int | None = None, **more: Any) -> Release:
    """Write the next epoch (compare-and-set by put-if-absent). `after`: raises Overtaken if that epoch is no more the last;
    `more`: other fields of the record."""
    fields: dict[str, Any] = {
        "at": now(),
        "by": who(),
        "why": why,
        "mode": mode,
        "champion": champion,
        "nonce": secrets.token_hex(8),
    } | more

    def record(epoch: int) -> Release:
        return Release(epoch=epoch, **fields)

    return record(journal(store, model).append(lambda epoch: record(epoch).model_dump_json(exclude_defaults=True).encode(), after))
