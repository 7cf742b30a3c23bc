"""The rollout of a challenger: shadow, canary by rising weights, promotion; it can be aborted at any step. Each step is
one record of the release log."""

import logging
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Annotated, Any

import msgspec

from mlops import releases, replicas
from mlops.attestations import attest
from mlops.contract import Judge
from mlops.errors import UserError, VerificationError
from mlops.registered_model import RegisteredModel
from mlops.releases import Mode, Release
from mlops.verdict import DECISIONS, Verdict

log = logging.getLogger("rollout")
_CONFIRM_SECONDS = 60.0
_MAX_VERDICT = 1024 * 1024
_LEAD = timedelta(seconds=6)  # every replica has read the record by then: it polls every two seconds


def current(model: RegisteredModel) -> Release:
    """Raises UserError if no rollout is in progress."""
    release = model.releases.current()
    if release is None or not release.in_rollout:
        raise UserError("rollout", model.name, "none is in progress; start one: mlops release DIGEST --mode shadow")
    return release


def write(
    model: RegisteredModel, champion: str, why: str, mode: Mode = "full", after: int | None = None,
    verdict: Verdict | None = None, **more: Any,
) -> Release:  # fmt: skip
    """The next record of the release log; `verdict`: the judge's, if it is written because of that, which is signed too.
    Once the record is written it is in force: nothing that fails then hides that."""
    written = model.releases.append(champion, why, mode, after, verdict.decision if verdict else "", **more)
    if verdict:
        try:
            _attest(model, written, verdict)
        except Exception as error:
            log.warning("the verdict on revision %d is not signed: %s", written.revision, str(error)[:300])
    return written


def _attest(model: RegisteredModel, written: Release, verdict: Verdict) -> None:
    judged = next(each for each in model.releases.read() if each.revision == written.revision - 1)
    found = msgspec.json.decode(msgspec.json.encode(verdict.as_dict()))  # JSON has no NaN
    found |= {"rollout": judged.rollout, "revision": written.revision}
    short = "passed" if verdict.decision == "advance" else "refused"
    about = judged.challenger or judged.champion
    attest(model, "judged", about, verdict=short, environment=model.environment, details=found)


def begin(
    model: RegisteredModel, champion: str, challenger: str, why: str, *, after: int | None = None, **more: Any
) -> Release:
    """Put a challenger beside the champion. If it is there already the rollout keeps its id, and every entity its model."""
    before = model.releases.current()
    same = before is not None and (before.champion, before.challenger) == (champion, challenger)
    rollout = before.rollout if before and same else secrets.token_hex(4)
    last = model.releases.log.last() if after is None else after
    return write(model, champion, why, after=last, challenger=challenger, rollout=rollout, **more)


def next_weight(release: Release, judge: Judge) -> float | None:
    """None after the last one: promotion is next."""
    return next((weight for weight in judge.weights if weight > (release.weight or 0.0)), None)


def advance(
    model: RegisteredModel, release: Release, judge: Judge, why: str, verdict: Verdict | None = None
) -> Release:
    """The step after `release`. Raises ConflictError if another record was written meanwhile."""
    weight = next_weight(release, judge)
    if weight is None:
        return promote(model, release, why, verdict)
    fields = {"challenger": release.challenger, "rollout": release.rollout, "weight": weight}
    return write(model, release.champion, why, "canary", release.revision, verdict, **fields)


def promote(model: RegisteredModel, release: Release, why: str, verdict: Verdict | None = None) -> Release:
    """The challenger becomes the champion."""
    assert release.challenger
    return write(model, release.challenger, why, after=release.revision, verdict=verdict)


def abort(model: RegisteredModel, release: Release, why: str, verdict: Verdict | None = None) -> Release:
    """The champion alone."""
    return write(model, release.champion, why, after=release.revision, verdict=verdict)


def set_paused(model: RegisteredModel, paused: bool, why: str) -> Release:
    release = current(model)
    new = {"revision", "at", "by", "nonce", "why", "champion", "paused", "mode"}
    kept = release.model_dump(exclude=new, exclude_none=True)
    return write(model, release.champion, why, release.mode, release.revision, paused=paused, **kept)


def first_record(log: Iterable[Release], release: Release) -> Release:
    """The record that started the rollout of `release`."""
    same = (release.champion, release.challenger, release.rollout)
    return next(each for each in log if (each.champion, each.challenger, each.rollout) == same)


def _verdicts(model: RegisteredModel, rollout: str | None) -> str:
    return f"{model.folder}/verdicts/{rollout}"


def save_verdict(model: RegisteredModel, release: Release, verdict: Verdict) -> None:
    """The last verdict of each decision under this release is kept."""
    key = f"{_verdicts(model, release.rollout)}/{release.revision:08d}-{verdict.decision}.json"
    said = {"at": releases.now(), "revision": release.revision} | verdict.as_dict()
    model.store.put(key, msgspec.json.encode(said))


class _Dated(msgspec.Struct):
    at: Annotated[datetime, msgspec.Meta(tz=True)]


Said = tuple[datetime, Verdict, bytes]  # as it was saved


def _said(model: RegisteredModel, keys: Iterable[str]) -> Iterator[Said]:
    """Damaged verdicts are none."""
    for key in keys:
        with suppress(ValueError, VerificationError):
            raw = model.store.get(key, _MAX_VERDICT) or b""
            yield msgspec.json.decode(raw, type=_Dated).at, msgspec.json.decode(raw, type=Verdict), raw


def newest_verdict(model: RegisteredModel, release: Release) -> tuple[datetime, Verdict] | None:
    """The judge's last one under this release, and when it was made."""
    folder = _verdicts(model, release.rollout)
    found = _said(model, (f"{folder}/{release.revision:08d}-{decision}.json" for decision in DECISIONS))
    newest = max(found, key=lambda said: said[0], default=None)
    return newest and newest[:2]


def read_verdicts(model: RegisteredModel, rollout: str | None) -> list[dict[str, Any]]:
    """Oldest first."""
    keys = [key for key in model.store.keys(_verdicts(model, rollout)) if key.endswith(".json")]
    found = _said(model, (key for key in keys if not key.endswith("/series.json")))
    return [msgspec.json.decode(raw) for _, _, raw in sorted(found, key=lambda said: said[0])]


def blue_green(model: RegisteredModel, blue: str, green: str, why: str) -> Release:
    """All replicas load green and confirm it; then all answer with it from one instant on, and keep blue loaded."""
    prepared = write(model, blue, f"{why} (prepare)", "blue-green", challenger=green)
    deadline = time.monotonic() + _CONFIRM_SECONDS
    while late := _unconfirmed(model, prepared.revision, green):
        if time.monotonic() > deadline:
            write(model, blue, f"called off: {', '.join(late)} did not confirm {green[:12]}", after=prepared.revision)
            hint = f"did not confirm {green[:12]} within {_CONFIRM_SECONDS:g} s; see their logs"
            raise UserError("replicas", ", ".join(late), hint)
        time.sleep(0.2)
    at = releases.now() + _LEAD
    return write(model, green, why, "blue-green", prepared.revision, challenger=blue, activate_at=at)


def _unconfirmed(model: RegisteredModel, revision: int, digest: str) -> list[str]:
    alive = replicas.alive(model)
    late = [each.name for each in alive if each.serving < revision or digest not in each.loaded]
    return late if alive else ["no replica is ready"]
