"""The way of a challenger: shadow, canary by rising weights, promotion; and back at any step. Each is one record."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import msgspec

from mlops import releases, replicas
from mlops.contract import Judge
from mlops.errors import Fault
from mlops.releases import Release
from mlops.store import Store

_CONFIRM_SECONDS = 60.0
_INSTANT = timedelta(seconds=6)  # every replica has read the record by then: it polls every two


def current(store: Store, model: str) -> Release:
    """The trial that is on. Raises Fault if there is none."""
    found = releases.serving(releases.read(store, model), releases.now())
    if found is None or not found.tried:
        raise Fault("trial", model, "no challenger is on trial; start one: mlops release DIGEST --mode shadow")
    return found


def put(store: Store, model: str, champion: str, challenger: str, why: str, **more: Any) -> Release:
    """A challenger beside the champion. One that is on trial already keeps its experiment, so every entity keeps its model."""
    before = releases.serving(releases.read(store, model), releases.now())
    same = before is not None and (before.champion, before.challenger) == (champion, challenger)
    name = before.experiment if before and same else secrets.token_hex(4)
    last = releases.journal(store, model).last()
    return releases.append(store, model, champion, why, after=last, challenger=challenger, experiment=name, **more)


def following(release: Release, judge: Judge) -> float | None:
    """The next weight; None: it has had them all, and is to be promoted."""
    weight = release.weight or 0.0
    return next((each for each in judge.weights if each > weight), None)


def forward(store: Store, model: str, release: Release, judge: Judge, why: str) -> Release:
    """One step on from `release`, if nobody wrote another meanwhile (Overtaken)."""
    weight = following(release, judge)
    if weight is None:
        return promote(store, model, release, why)
    fields = {"challenger": release.challenger, "experiment": release.experiment, "weight": weight}
    return releases.append(store, model, release.champion, why, mode="canary", after=release.epoch, **fields)


def promote(store: Store, model: str, release: Release, why: str) -> Release:
    """The challenger becomes the champion."""
    assert release.challenger
    return releases.append(store, model, release.challenger, why, after=release.epoch)


def back(store: Store, model: str, release: Release, why: str) -> Release:
    """The champion alone."""
    return releases.append(store, model, release.champion, why, after=release.epoch)


def started(log: Iterable[Release], release: Release) -> Release:
    """The record with which a trial began: all that it has answered belongs to it."""
    mine = (release.champion, release.challenger, release.experiment)
    return next(each for each in log if (each.champion, each.challenger, each.experiment) == mine)


def keep(store: Store, model: str, release: Release, verdict: dict[str, Any]) -> None:
    """What the judge said while this record was in force; the last of each decision stays."""
    key = f"models/{model}/verdicts/{release.experiment}/{release.epoch:08d}-{verdict['decision']}.json"
    store.put(key, msgspec.json.encode({"at": releases.now(), "epoch": release.epoch} | verdict))


def verdicts(store: Store, model: str, experiment: str | None) -> list[dict[str, Any]]:
    """Oldest first."""
    keys = [key for key in store.keys(f"models/{model}/verdicts/{experiment}") if key.endswith(".json")]
    return sorted((msgspec.json.decode(store.get(key) or b"{}") for key in keys), key=lambda verdict: verdict["at"])


def hold(store: Store, model: str, on: bool, why: str) -> Release:
    release = current(store, model)
    kept = release.model_dump(exclude={"epoch", "at", "by", "nonce", "why", "champion", "hold", "mode"}, exclude_none=True)
    return releases.append(store, model, release.champion, why, mode=release.mode, after=release.epoch, hold=on, **kept)


def blue_green(store: Store, model: str, blue: str, green: str, why: str) -> Release:
    """All replicas load green, and say so; then all answer with it from one instant on, and keep blue at hand."""
    prepared = releases.append(store, model, blue, f"{why} (prepare)", mode="blue-green", challenger=green)
    deadline = time.monotonic() + _CONFIRM_SECONDS
    while late := _unprepared(store, model, prepared.epoch, green):
        if time.monotonic() > deadline:
            releases.append(store, model, blue, f"called off: {', '.join(late)} did not confirm {green[:12]}", after=prepared.epoch)
            raise Fault(
                "replicas", ", ".join(late), f"did not confirm within {_CONFIRM_SECONDS:g} s that {green[:12]} is loaded; look there"
            )
        time.sleep(0.2)
    instant = releases.now() + _INSTANT
    return releases.append(store, model, green, why, "blue-green", after=prepared.epoch, challenger=blue, activate_at=instant)


def _unprepared(store: Store, model: str, epoch: int, digest: str) -> list[str]:
    alive = replicas.alive(store, model)
    return [each.name for each in alive if each.serving < epoch or digest not in each.loaded] if alive else ["no replica is ready: nobody"]
