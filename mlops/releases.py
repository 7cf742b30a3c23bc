import getpass
import json
import logging
import os
import secrets
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from mlops.append_log import MAX_BYTES, AppendLog
from mlops.envelope import SIGNER, Attestation, seal, verify
from mlops.errors import Line, VerificationError, explain
from mlops.keys import Keyring
from mlops.store import Store

log = logging.getLogger("releases")
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
    by: Line
    why: Line
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


def parse(revision: int, record: object) -> Release:
    try:
        release = Release.model_validate(record)
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
    """The releases of one model, oldest first. A record never changes, so each read fetches only what is new; one that
    does not count, as if it had never been written, is shown to `refuse`."""

    def __init__(self, store: Store, model: str, keyring: Keyring, environment: str):
        self.log = AppendLog(store, f"models/{model}/releases")
        self.refuse: Callable[[VerificationError, int], object] = lambda *_: None
        self._model, self._keyring, self._environment = model, keyring, environment
        self._releases: list[Release] = []
        self._trusted: object = None
        self.revision = 0  # of the last record
        self._lock = threading.Lock()

    def read(self) -> list[Release]:
        """All that count. With another keyring others may, so all are read again."""
        with self._lock:
            if self._trusted != (trusted := self._keyring.trusted()):
                self._trusted, self._releases, self.revision = trusted, [], 0
            for revision, raw in self.log.tail(self.revision):
                self.revision = revision
                try:
                    before = self._releases[-1] if self._releases else None
                    self._releases.append(self.open(revision, raw, before)[0])
                except VerificationError as error:
                    self.refuse(error, revision)
            return list(self._releases)

    def current(self) -> Release | None:
        return serving(self.read(), now())

    def open(self, revision: int, raw: bytes, before: Release | None) -> tuple[Release, Attestation | None]:
        """A record, and its signature. Unsigned, it can only end what `before` began: an abort must not fail for want of a
        key, and without one nobody else gets a model to callers. Raises VerificationError."""
        try:
            content = dict(json.loads(raw))
        except (ValueError, TypeError, RecursionError) as error:
            raise VerificationError("record", f"release {revision}", "unreadable", str(error)[:200]) from None
        if "payload" not in content:
            release, signed = parse(revision, content), self._beside(revision, content)
            if signed is None and not (before and _ends(release, before)):
                hint = "is unsigned: it counts only if it ends a rollout and leaves the champion"
                raise VerificationError("signature", f"release {revision}", release.mode, hint)
            return release, signed
        signed = verify(raw, self._keyring, self._environment)
        if (signed.kind, signed.model) != ("released", self._model):
            hint = f"is signed, but {signed.kind} of {signed.model}"
            raise VerificationError("record", f"release {revision}", signed.kind, hint)
        release = parse(revision, {name: value for name, value in signed.details.items() if name != "judged"})
        return release, signed

    def _beside(self, revision: int, record: object) -> Attestation | None:
        """The signature of a record from before they were envelopes."""
        for key in self.log.store.keys(f"models/{self._model}/signed/{revision:08d}"):
            with suppress(VerificationError):
                found = verify(self.log.store.get(key, MAX_BYTES) or b"", self._keyring, self._environment)
                said = {name: value for name, value in found.details.items() if name != "judged"}
                if (found.kind, found.model, said) == ("released", self._model, record):
                    return found
        return None

    def append(
        self, champion: str, why: str, mode: Mode = "full", after: int | None = None, judged: str = "", **more: Any
    ) -> Release:
        """Write the next revision (compare-and-set by put-if-absent). `after`: raises ConflictError unless that revision
        is still the last; `judged`: the decision that led to it; `more`: other fields of the record. Raises UserError if
        nobody here can sign it, unless it ends a rollout."""
        common = {"at": now(), "by": author(), "why": why, "mode": mode, "champion": champion}
        fields: dict[str, Any] = common | {"nonce": secrets.token_hex(8)} | more

        def make(revision: int) -> bytes:
            return self._sealed(Release(revision=revision, **fields), judged)

        return Release(revision=self.log.append(make, after), **fields)

    def _sealed(self, release: Release, judged: str) -> bytes:
        record = release.model_dump(mode="json", exclude_defaults=True)
        details = record | ({"judged": judged} if judged else {})
        about: dict[str, Any] = {
            "model": self._model,
            "digest": release.champion,
            "environment": self._environment,
            "at": release.at,
        }
        try:
            payload = Attestation(kind="released", details=details, **about).payload()
            return seal(payload, self._keyring, SIGNER["released"], self._environment).envelope
        except Exception as error:
            before = self.read()
            if not (before and _ends(release, before[-1])):
                raise
            log.warning("revision %d is not signed: %s", release.revision, str(error)[:300])
            return json.dumps(record).encode()


def _ends(release: Release, before: Release) -> bool:
    """Whether it takes the challenger away and does nothing else."""
    return before.challenger is not None and (release.mode, release.champion) == ("full", before.champion)
