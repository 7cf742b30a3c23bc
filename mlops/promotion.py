"""Promotion of a model into an environment, and rollback."""

import re
from collections.abc import Callable
from typing import Any

from mlops import bundle as bundles
from mlops import rollout
from mlops.attestations import attest, require_approval, require_gate
from mlops.bundle import Bundle
from mlops.contract import Contract
from mlops.errors import UserError, VerificationError
from mlops.registered_model import RegisteredModel
from mlops.releases import Mode, Release, now, serving
from mlops.sandbox import run_in_sandbox


def release(
    model: RegisteredModel, prefix: str, why: str, mode: Mode = "full", breaking: bool = False,
    weight: float | None = None, cohort: dict[str, str] | None = None, paused: bool = False, after: int | None = None,
) -> Release:  # fmt: skip
    """Verify digest, gate and origin again, sign the approval for this environment, write the next revision. Of a rollout
    `paused`: it waits for a person before it advances; `after`: raises ConflictError unless that revision is the last."""
    if weight is not None and mode not in ("canary", "ab"):
        raise UserError("weight", weight, f"is for --mode canary and ab; in mode {mode} one model answers all")
    digest = bundles.find(model, prefix)
    bundle = bundles.read(model, digest)
    gate = require_gate(model, digest)
    run_in_sandbox(bundle, digest)
    served = champion(model)
    if served and not breaking:
        _require_compatible_request(bundle, served)
    if mode != "full" and (served is None or served.digest == digest):
        raise UserError("mode", mode, "needs another model that serves; release this one with --mode full")
    if served and cohort:
        _require_cohort(cohort, served.contract)
    if not _is_approved(model, digest):
        details = {"gate": gate.at.isoformat(), "why": why}
        attest(model, "approved", digest, verdict="passed", environment=model.environment, details=details)
    if mode == "full" or served is None:
        return rollout.write(model, digest, why)
    if mode == "blue-green":
        return rollout.blue_green(model, served.digest, digest, why)
    if mode in ("canary", "ab") and weight is None:
        weight = 1.0 if cohort else 0.5 if mode == "ab" else served.contract.judge.weights[0]
    about: dict[str, Any] = {"mode": mode, "weight": weight, "cohort": cohort, "paused": paused}
    return rollout.begin(model, served.digest, digest, why, after=after, **about)


def champion(model: RegisteredModel) -> Bundle | None:
    """What an app that starts now serves: the champion of the newest release that verifies."""
    log = model.releases.read()
    while current := serving(log, now()):
        try:
            require_approval(model, current.champion)
            return bundles.read(model, current.champion)
        except VerificationError:
            log = [release for release in log if release.champion != current.champion]
    return None


def rollback(model: RegisteredModel, why: str) -> Release:
    """Release the newest model before the current one that was observed answering. A rollout in progress is aborted
    instead, and its champion stays."""
    log = model.releases.read()
    current = serving(log, now())
    if current is None:
        raise UserError("rollback", model.name, "nothing is released yet")
    if current.in_rollout:
        return rollout.abort(model, current, why)
    observed = _observed_revisions(model)
    for previous in reversed(log):
        if previous.champion != current.champion and previous.revision in observed:
            try:
                require_approval(model, previous.champion)
                bundles.read(model, previous.champion)
            except VerificationError:
                continue
            return rollout.write(model, previous.champion, f"{why} (back to revision {previous.revision})")
    hint = "no other model that still verifies was observed serving; release one: mlops release DIGEST"
    raise UserError("rollback", current.champion[:12], hint)


def check(model: RegisteredModel, prefix: str) -> dict[str, Any]:
    """Every verification that stands between a bundle and traffic; name → why it failed, or ''."""
    digest = bundles.find(model, prefix)
    checks: dict[str, str] = {}

    def attempt(name: str, verify: Callable[[], Any]) -> Any:
        checks[name] = ""
        try:
            return verify()
        except UserError as error:
            checks[name] = str(error)

    bundle = attempt("bundle", lambda: bundles.read(model, digest))
    if bundle:
        attempt("model", lambda: run_in_sandbox(bundle, digest))
    attempt("gate", lambda: require_gate(model, digest))
    attempt("approval", lambda: require_approval(model, digest))
    return {"digest": digest, "valid": not any(checks.values()), "checks": checks}


def narrower(new: Contract, old: Contract) -> list[str]:
    """How the new contract refuses requests that the old one accepts."""
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


def _require_compatible_request(new: Bundle, old: Bundle) -> None:
    narrowed = narrower(new.contract, old.contract)
    before, after = old.json("profile.json")["levels"], new.json("profile.json")["levels"]
    for name in before.keys() & after.keys():
        if gone := set(before[name]) - set(after[name]):
            narrowed.append(f"{name} rejects {sorted(gone)}")
    if narrowed:
        hint = "callers of the served model would be refused; tell them, then use --breaking"
        raise UserError("request", "; ".join(narrowed), hint)


def _require_cohort(cohort: dict[str, str], contract: Contract) -> None:
    if not contract.entity:
        raise UserError("cohort", cohort, "needs an entity in the contract, so that each caller keeps one model")
    columns = [*contract.entity, *(name for name, feature in contract.features.items() if feature.type != "number")]
    if unknown := [name for name in cohort if name not in columns]:
        raise UserError("cohort", unknown[0], f"is not a column that can define one; use {', '.join(columns)}")


def _is_approved(model: RegisteredModel, digest: str) -> bool:
    try:
        require_approval(model, digest)
    except VerificationError:
        return False
    return True


def _observed_revisions(model: RegisteredModel) -> set[int]:
    """The revision is in the name of each segment of the prediction log, so none has to be read."""
    names = (key.rsplit("/", 1)[-1] for key in model.store.keys(f"predictions/{model.name}"))
    return {int(name[:8]) for name in names if re.match(r"[0-9]{8}-", name)}
