"""The rollout of a challenger: shadow, canary by rising weights, promotion; it can be aborted at any step. Each step is
one record of the release log."""

import secrets
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import msgspec

from mlops import releases, replicas
from mlops.contract import Judge
from mlops.errors import UserError
from mlops.registered_model import RegisteredModel
from mlops.releases import Release

_CONFIRM_SECONDS = 60.0
_LEAD = timedelta(seconds=6)  # every replica has read the record by then: it polls every two seconds


def current(model: RegisteredModel) -> Release:
    """Raises UserError if no rollout is in progress."""
    release = model.releases.current()
    if release is None or not release.in_rollout:
        raise UserError("rollout", model.name, "none is in progress; start one: mlops release DIGEST --mode shadow")
    return release


def begin(model: RegisteredModel, champion: str, challenger: str, why: str, **more: Any) -> Release:
    """Put a challenger beside the champion. If it is there already the rollout keeps its id, and every entity its model."""
    before = model.releases.current()
    same = before is not None and (before.champion, before.challenger) == (champion, challenger)
    rollout = before.rollout if before and same else secrets.token_hex(4)
    last = model.releases.log.last()
    return model.releases.append(champion, why, after=last, challenger=challenger, rollout=rollout, **more)


def next_weight(release: Release, judge: Judge) -> float | None:
    """None after the last one: promotion is next."""
    return next((weight for weight in judge.weights if weight > (release.weight or 0.0)), None)


def advance(model: RegisteredModel, release: Release, judge: Judge, why: str) -> Release:
    """The step after `release`. Raises ConflictError if another record was written meanwhile."""
    weight = next_weight(release, judge)
    if weight is None:
        return promote(model, release, why)
    fields = {"challenger": release.challenger, "rollout": release.rollout, "weight": weight}
    return model.releases.append(release.champion, why, mode="canary", after=release.revision, **fields)


def promote(model: RegisteredModel, release: Release, why: str) -> Release:
    """The challenger becomes the champion."""
    assert release.challenger
    return model.releases.append(release.challenger, why, after=release.revision)


def abort(model: RegisteredModel, release: Release, why: str) -> Release:
    """The champion alone."""
    return model.releases.append(release.champion, why, after=release.revision)


def set_paused(model: RegisteredModel, paused: bool, why: str) -> Release:
    release = current(model)
    new = {"revision", "at", "by", "nonce", "why", "champion", "paused", "mode"}
    kept = release.model_dump(exclude=new, exclude_none=True)
    return model.releases.append(release.champion, why, release.mode, after=release.revision, paused=paused, **kept)


def first_record(log: Iterable[Release], release: Release) -> Release:
    """The record that started the rollout of `release`."""
    same = (release.champion, release.challenger, release.rollout)
    return next(each for each in log if (each.champion, each.challenger, each.rollout) == same)


def save_verdict(model: RegisteredModel, release: Release, verdict: dict[str, Any]) -> None:
    """The last verdict of each decision under this release is kept."""
    key = f"{model.folder}/verdicts/{release.rollout}/{release.revision:08d}-{verdict['decision']}.json"
    model.store.put(key, msgspec.json.encode({"at": releases.now(), "revision": release.revision} | verdict))


def read_verdicts(model: RegisteredModel, rollout: str | None) -> list[dict[str, Any]]:
    """Oldest first."""
    keys = [key for key in model.store.keys(f"{model.folder}/verdicts/{rollout}") if key.endswith(".json")]
    return sorted((msgspec.json.decode(model.store.get(key) or b"{}") for key in keys), key=lambda each: each["at"])


def blue_green(model: RegisteredModel, blue: str, green: str, why: str) -> Release:
    """All replicas load green and confirm it; then all answer with it from one instant on, and keep blue loaded."""
    log = model.releases
    prepared = log.append(blue, f"{why} (prepare)", mode="blue-green", challenger=green)
    deadline = time.monotonic() + _CONFIRM_SECONDS
    while late := _unconfirmed(model, prepared.revision, green):
        if time.monotonic() > deadline:
            log.append(blue, f"called off: {', '.join(late)} did not confirm {green[:12]}", after=prepared.revision)
            hint = f"did not confirm {green[:12]} within {_CONFIRM_SECONDS:g} s; see their logs"
            raise UserError("replicas", ", ".join(late), hint)
        time.sleep(0.2)
    at = releases.now() + _LEAD
    return log.append(green, why, "blue-green", after=prepared.revision, challenger=blue, activate_at=at)


def _unconfirmed(model: RegisteredModel, revision: int, digest: str) -> list[str]:
    alive = replicas.alive(model)
    late = [each.name for each in alive if each.serving < revision or digest not in each.loaded]
    return late if alive else ["no replica is ready"]
