import getpass
import os
import secrets
import threading
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from mlops.append_log import AppendLog
from mlops.errors import VerificationError, explain
from mlops.store import Store

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Mode = Literal["full", "blue-green", "canary", "ab", "shadow"]
_NEEDS = {"full": (), "shadow": ("challenger",), "blue-green": ("challenger",)}


class Release(BaseModel):
    """One record of the release log: from `at` (or `activate_at`) on, this is what serves.

    full: the champion answers. shadow: the challenger scores the same rows, unseen. canary, ab: it answers `weight` of
    the entities (of those in `cohort`, if given). blue-green: the challenger is loaded, to take over at one instant.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    revision: int = Field(ge=1)
    at: AwareDatetime
    by: str
    why: str
    mode: Mode
    champion: Digest
    challenger: Digest | None = None
    weight: float | None = Field(default=None, ge=0, le=1)
    activate_at: AwareDatetime | None = None
    cohort: dict[str, str] | None = None
    rollout: str | None = None  # one id for all weights of a rollout: an entity keeps its model while they rise
    paused: bool = False  # the controller does not advance the rollout
    nonce: str

    @model_validator(mode="after")
    def _complete(self) -> Self:
        needed = _NEEDS.get(self.mode, ("challenger", "weight"))
        if missing := [name for name in needed if getattr(self, name) is None]:
            raise ValueError(f"mode {self.mode} needs a {missing[0]}")
        if self.weight is not None and self.mode not in ("canary", "ab"):
            raise ValueError(f"mode {self.mode} has no weight: the champion answers all")
        if self.challenger == self.champion:
            raise ValueError("champion and challenger are the same model")
        return self

    @property
    def in_rollout(self) -> bool:
        """Whether both models score the same rows."""
        return self.mode in ("shadow", "canary", "ab")

    @property
    def automatic(self) -> bool:
        """Whether the judge takes the rollout on; an A/B test, a cohort and what is paused are a person's."""
        return self.in_rollout and self.mode != "ab" and not self.cohort and not self.paused


def describe(release: Release) -> str:
    champion, challenger = release.champion[:12], (release.challenger or "")[:12]
    if release.mode == "full":
        return champion
    if release.mode == "blue-green":
        return f"{champion} (blue-green, {'replaced' if release.activate_at else 'preparing'} {challenger})"
    cohort = f" for {', '.join(map('='.join, release.cohort.items()))}" if release.cohort else ""
    weight = f" {release.weight:.0%}" if release.weight is not None else ""
    return f"{champion}, {release.mode}{weight}{cohort} {challenger}{', paused' if release.paused else ''}"


def author() -> str:
    """MLOPS_BY, or the user's name; a container's user may have none."""
    try:
        return os.environ.get("MLOPS_BY") or getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


def now() -> datetime:
    return datetime.now(UTC)


def parse(revision: int, raw: bytes) -> Release:
    try:
        release = Release.model_validate_json(raw)
    except ValidationError as error:
        problem = explain(error)[0][:300]
        raise VerificationError("record", f"release {revision}", "unreadable", problem) from None
    if release.revision != revision:
        raise VerificationError("record", f"release {revision}", release.revision, "is not the revision of its key")
    return release


def serving(log: Iterable[Release], at: datetime) -> Release | None:
    """The release in force at `at`: the newest one written and active by then. Every part calls this function."""
    current = None
    for release in log:
        if release.at <= at and (release.activate_at is None or release.activate_at <= at):
            current = release
    return current


class ReleaseLog:
    """The releases of one model, oldest first. A record never changes, so each read fetches only what is new; an
    unreadable record counts as never written."""

    def __init__(self, store: Store, model: str):
        self.log = AppendLog(store, f"models/{model}/releases")
        self._releases: list[Release] = []
        self._revision, self._lock = 0, threading.Lock()

    def read(self) -> list[Release]:
        with self._lock:
            for revision, raw in self.log.tail(self._revision):
                self._revision = revision
                with suppress(VerificationError):
                    self._releases.append(parse(revision, raw))
            return list(self._releases)

    def current(self) -> Release | None:
        return serving(self.read(), now())

    def append(self, champion: str, why: str, mode: Mode = "full", after: int | None = None, **more: Any) -> Release:
        """Write the next revision (compare-and-set by put-if-absent). `after`: raises ConflictError unless that revision
        is still the last; `more`: other fields of the record."""
        common = {"at": now(), "by": author(), "why": why, "mode": mode, "champion": champion}
        fields: dict[str, Any] = common | {"nonce": secrets.token_hex(8)} | more

        def record(revision: int) -> Release:
            return Release(revision=revision, **fields)

        make = lambda revision: record(revision).model_dump_json(exclude_defaults=True).encode()  # noqa: E731
        return record(self.log.append(make, after))
