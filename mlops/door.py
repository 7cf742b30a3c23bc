"""The one door through which a model reaches an environment, and the way back."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import msgspec

from mlops import bundle as bundles
from mlops import records, releases, trials
from mlops.bundle import Bundle
from mlops.contract import Contract
from mlops.environment import Environment
from mlops.errors import Fault, Refused
from mlops.releases import Mode, Release
from mlops.statements import require_approval, require_gate, state
from mlops.store import Store

_AROUND_SECONDS = 60.0


def release(
    environment: Environment,
    model: str,
    prefix: str,
    why: str,
    mode: Mode = "full",
    breaking: bool = False,
    weight: float | None = None,
    segment: dict[str, str] | None = None,
    hold: bool = False,
) -> Release:
    """Check digest, gate and origin again, sign the approval for this environment, write the next epoch."""
    from mlops.probe import probe

    if weight is not None and mode not in ("canary", "ab"):
        raise Fault("weight", weight, f"is for --mode canary and ab; in mode {mode} one model answers all")
    store, keyring = environment.store, environment.keys
    digest = bundles.find(store, model, prefix)
    bundle = bundles.read(store, model, digest)
    gate = require_gate(store, keyring, model, digest)
    probe(bundle, digest)
    served = champion(environment, model)
    if served and not breaking:
        _accepts_what_callers_send(bundle, served)
    if mode != "full" and (served is None or served.digest == digest):
        raise Fault("mode", mode, "needs another model that serves, to compare with; release this one with --mode full")
    if served and segment:
        _is_a_segment(segment, served.contract)
    if not _approved(environment, model, digest):
        details = {"gate": gate.at.isoformat(), "why": why}
        state(store, keyring, "approved", model, digest, verdict="passed", environment=environment.name, details=details)
    if mode == "full" or served is None:
        return releases.append(store, model, digest, why)
    if mode == "blue-green":
        return trials.blue_green(store, model, served.digest, digest, why)
    if mode in ("canary", "ab") and weight is None:
        weight = 1.0 if segment else 0.5 if mode == "ab" else served.contract.judge.weights[0]
    return trials.put(store, model, served.digest, digest, why, mode=mode, weight=weight, segment=segment, hold=hold)


def force(environment: Environment, model: str, why: str) -> Release:
    """The next step of the trial that is on, whatever the evidence."""
    served, store = champion(environment, model), environment.store
    release = trials.current(store, model)
    if served is None or served.digest != release.champion:
        raise Fault("champion", release.champion[:12], "does not hold any more; release another model")
    return trials.forward(store, model, release, served.contract.judge, why)


def _is_a_segment(segment: dict[str, str], contract: Contract) -> None:
    if not contract.entity:
        raise Fault("segment", segment, "needs an entity in the contract, so that one caller keeps one model")
    known = [*contract.entity, *(name for name, feature in contract.features.items() if feature.type != "number")]
    if unknown := [name for name in segment if name not in known]:
        raise Fault("segment", unknown[0], f"is none of the columns that can make one: {', '.join(known)}")


def champion(environment: Environment, model: str) -> Bundle | None:
    """What an app that starts now serves: of the newest release that holds. A record that does not is passed over."""
    log = releases.read(environment.store, model)
    while current := releases.serving(log, releases.now()):
        try:
            require_approval(environment.store, environment.keys, model, current.champion, environment.name)
            return bundles.read(environment.store, model, current.champion)
        except Refused:
            log = [release for release in log if release.champion != current.champion]
    return None


def _approved(environment: Environment, model: str, digest: str) -> bool:
    try:
        require_approval(environment.store, environment.keys, model, digest, environment.name)
    except Refused:
        return False
    return True


def _accepts_what_callers_send(new: Bundle, old: Bundle) -> None:
    narrowed = narrower(new.contract, old.contract)
    before, after = old.json("profile.json")["levels"], new.json("profile.json")["levels"]
    narrowed += [
        f"{name} rejects {sorted(set(before[name]) - set(after[name]))}"
        for name in before
        if name in after and set(before[name]) - set(after[name])
    ]
    if narrowed:
        raise Fault("request", "; ".join(narrowed), "callers of the served model would be refused; tell them, then --breaking")


def narrower(new: Contract, old: Contract) -> list[str]:
    """Requests that the old contract takes and the new one refuses."""
    found = [f"{name} is gone" for name in old.features if name not in new.features and name not in new.context]
    for name, feature in new.features.items():
        before = old.features.get(name)
        if before is None:
            if not feature.missing:
                found.append(f"{name} is new and required")
            continue
        if before.type != feature.type:
            found.append(f"{name} was {before.type}, is {feature.type}")
        if before.missing and not feature.missing:
            found.append(f"{name} may no longer be missing")
        if feature.unknown == "reject" and before.unknown == "other":
            found.append(f"{name} now rejects unknown values")
        low, high = before.range or (float("-inf"), float("inf"))
        if feature.range and (feature.range[0] > low or feature.range[1] < high):
            found.append(f"{name} has the narrower range {list(feature.range)}")
    return found


def rollback(environment: Environment, model: str, why: str) -> Release:
    """Release the newest model before the current one that answered somebody: not one that never ran. A challenger on trial
    goes, and its champion stays."""
    store = environment.store
    log = releases.read(store, model)
    current = releases.serving(log, releases.now())
    if current is None:
        raise Fault("rollback", model, "nothing is released yet")
    if current.tried:
        return trials.back(store, model, current, why)
    answered = _epochs_observed(store, model)
    for previous in reversed(log):
        if previous.champion != current.champion and previous.epoch in answered:
            try:
                require_approval(store, environment.keys, model, previous.champion, environment.name)
                bundles.read(store, model, previous.champion)
            except Refused:
                continue
            return releases.append(store, model, previous.champion, f"{why} (back to epoch {previous.epoch})")
    raise Fault(
        "rollback", current.champion[:12], "no other model that still holds was observed serving; release one: mlops release DIGEST"
    )


def _epochs_observed(store: Store, model: str) -> set[int]:
    """Segments carry their epoch in their name, so this reads none of them."""
    names = (key.rsplit("/", 1)[-1] for key in store.keys(f"predictions/{model}"))
    return {int(name[:8]) for name in names if re.match(r"[0-9]{8}-", name)}


def observed(store: Store, model: str, at: datetime) -> Counter[tuple[str, int]]:
    """(digest, epoch) → rows answered in the second before and after `at`, or else by the answer next to it within a
    minute; from the prediction log."""
    moment, near = at.timestamp(), {}
    hours = {datetime.fromtimestamp(moment + shift, UTC).strftime("%Y-%m-%d/%H") for shift in (-_AROUND_SECONDS, _AROUND_SECONDS)}
    for hour in sorted(hours):
        for key in store.keys(f"predictions/{model}/{hour}"):
            for row_id, answered, digest, epoch in _answers(key, store.get(key) or b""):
                if abs(answered - moment) <= _AROUND_SECONDS:
                    near[row_id] = abs(answered - moment), (digest, epoch)  # one that is being compacted is there twice
    nearest = min((distance for distance, _ in near.values()), default=0.0)
    return Counter(who for distance, who in near.values() if distance <= max(1.0, nearest))


def _answers(key: str, content: bytes) -> Iterator[tuple[str, float, str, int]]:
    """(id, at, digest, epoch) of the rows of a segment, or of the Parquet that it became."""
    if key.endswith(".parquet"):
        from pyarrow import BufferReader, parquet

        names = ["id", "at", "model", "epoch"]
        yield from zip(
            *(column.to_pylist() for column in parquet.read_table(BufferReader(content), columns=names).select(names)), strict=True
        )
        return
    decode = msgspec.json.Decoder(records.Scored).decode
    for raw in records.lines(content):
        with suppress(msgspec.DecodeError):  # whole, but not of ours
            row = decode(raw)
            yield row.id, row.at, row.model, row.epoch


def check(environment: Environment, model: str, prefix: str) -> dict[str, Any]:
    """Every verification that stands between a bundle and traffic; name → why not, or ''."""
    from mlops.probe import probe

    store, keyring = environment.store, environment.keys
    digest = bundles.find(store, model, prefix)
    checks: dict[str, str] = {}

    def attempt(name: str, step: Callable[[], Any]) -> Any:
        try:
            done = step()
            checks[name] = ""
            return done
        except Fault as fault:
            checks[name] = str(fault)

    bundle = attempt("bundle", lambda: bundles.read(store, model, digest))
    if bundle:
        attempt("model", lambda: probe(bundle, digest))
    attempt("gate", lambda: require_gate(store, keyring, model, digest))
    attempt("approval", lambda: require_approval(store, keyring, model, digest, environment.name))
    return {"digest": digest, "holds": not any(checks.values()), "checks": checks}
