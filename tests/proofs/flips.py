"""A flipped bit in any object of the bucket is refused or harmless: nothing dies of it, no rollout is aborted, no sum is another."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from mlops import access, attestations, replicas, rollout, snapshot
from mlops import bundle as bundles
from mlops.environment import Environment
from mlops.errors import UserError
from mlops.registered_model import RegisteredModel
from mlops.releases import now
from mlops.retraining import RetrainingLog
from monitoring.analysis import evidence_for
from monitoring.approver import Approver
from monitoring.compaction import compact
from monitoring.frames import KINDS, parquet
from monitoring.judge import judge
from monitoring.outcomes import join_outcomes
from monitoring.retention import _records, forget
from monitoring.series import Series
from tests.rollout_log import Log, Rows
from tests.service import environment
from tests.synthetic import MODEL, build, frame, publish
from training.source import put_snapshot, read_snapshot

FLIPS = 5_000
Seen = dict[str, Any]  # what a reader says; a list has all that counts
Reader = Callable[[RegisteredModel], Seen]


def prove(folder: Path, flips: int = FLIPS) -> dict[str, Any]:
    model, random = make(folder), np.random.default_rng(0)
    release = model.releases.current()
    kinds = objects(model)
    before = {kind: read(fresh(model)) for kind, (read, _) in kinds.items()}
    found: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    for number in range(flips):
        kind = list(kinds)[number % len(kinds)]
        read, keys = kinds[kind]
        key = keys[int(random.integers(len(keys)))]
        content = model.store.get(key) or b""
        position = int(random.integers(len(content)))
        flipped = bytearray(content)
        flipped[position] ^= 1 << int(random.integers(8))
        model.store.put(key, bytes(flipped))
        found[kind][_result(read, model, before[kind])] += 1
        model.store.put(key, content)
    after = model.releases.current()
    total = sum(found.values(), Counter())
    faults = [f"{total[bad]} {bad}" for bad in total if bad not in ("refused", "harmless")]
    faults += [] if after == release else ["a release was written"]
    return {
        "flips": flips, **{kind: dict(counts) for kind, counts in found.items()}, "rollouts aborted": int(after != release),
        "holds": not faults, "reason": "; ".join(faults),
    }  # fmt: skip


def _result(read: Reader, model: RegisteredModel, before: Seen) -> str:
    try:
        seen = read(fresh(model))
    except UserError:
        return "refused"
    except Exception as error:  # of no process that reads it
        return f"ended by {type(error).__name__}"
    if seen == before:
        return "harmless"
    refused = all(_fewer(seen[name], value) for name, value in before.items()) or seen.get("unreadable", 0) > 0
    return "refused" if refused and seen.get("decision") != "abort" else "with another content"


def _fewer(some: Any, whole: Any) -> bool:
    return some == whole or (isinstance(whole, list) and all(each in whole for each in some))


def fresh(model: RegisteredModel) -> RegisteredModel:
    return replace(model)


def make(folder: Path) -> RegisteredModel:
    """A rollout in progress with an hour of its log as Parquet and one as segments; and an object of every other kind."""
    here: Environment = environment(folder)
    model, store = here.model(MODEL), here.store
    first, second = (publish(here, build(seed=seed)) for seed in (1, 2))
    for digest in (first, second):
        attestations.attest(model, "approved", digest, environment="local")
    model.releases.append(first, "first")
    release = rollout.begin(model, first, second, "second", mode="canary", weight=0.5)
    for number in range(2):
        Log(store).write(release, Rows(days=16, a_day=40, seed=number), outcomes=number == 0)
        if number == 0:
            for kind in KINDS:
                compact(model, kind, now() + timedelta(hours=2))
    Log(store).write(release, Rows(days=1, a_day=40, seed=2))
    contract, evidence = evidence_for(model, first)
    verdict = judge(contract, release, evidence.look(release.revision, release.at, now()))
    assert verdict.decision == "inconclusive", verdict.reasons
    rollout.save_verdict(model, release, verdict)
    series = Series(model, release)
    series.add(now(), release, verdict)
    series.save(at_once=True)
    retrainings = RetrainingLog(model)
    retrainings.end(retrainings.begin(contract.retraining, "retrain", "proof", date.today()), "failed", "proof")
    replicas.report(model, "one", serving=2, ready=True, loaded=[first, second])
    for name in ("one", "two"):
        access.new(store, name, ["predict"], per_second=1.0)
    forget(model, None, "nobody", "proof")
    store.put(f"{model.folder}/reports/{first}/report.html", b"<h1>report</h1>" * 20)
    put_snapshot(store, MODEL, parquet(frame(5)))
    return model


def objects(model: RegisteredModel) -> dict[str, tuple[Reader, list[str]]]:
    """Of each kind: who reads it, and its keys."""
    keys, folder = model.store.keys(""), model.folder

    def like(prefix: str, suffix: str = "") -> list[str]:
        return [key for key in keys if key.startswith(prefix) and key.endswith(suffix)]

    kinds: dict[str, tuple[Reader, list[str]]] = {
        "bundles": (_bundles, like(f"{folder}/bundles")),
        "attestations": (_attestations, like(f"{folder}/attestations")),
        "releases": (lambda model: {"log": model.releases.read()}, like(f"{folder}/releases")),
        "access": (lambda model: {"keys": access.read(model.store)}, like("access")),
        "retrainings": (lambda model: {"log": RetrainingLog(model).read()}, like(f"{folder}/retrainings")),
        "replicas": (lambda model: {"alive": len(replicas.alive(model)) < 2}, like("replicas")),
        "verdicts": (_verdicts, like(f"{folder}/verdicts")),
        "reports": (lambda model: {}, like(f"{folder}/reports")),
        "forgotten": (lambda model: {"log": _records(model)}, like(f"{folder}/forgotten")),
        "snapshot": (lambda model: {"rows": read_snapshot(model.store, MODEL).rows()}, [snapshot.key(MODEL)]),
    }
    for kind in KINDS:
        for suffix, name in (("log", "segments"), ("parquet", "Parquet")):
            kinds[f"{kind}, {name}"] = _judged, like(kind, suffix)
    assert all(found for _, found in kinds.values()), kinds
    return kinds


def _bundles(model: RegisteredModel) -> Seen:
    digests = sorted({key.split("/")[3] for key in model.store.keys(f"{model.folder}/bundles")})
    return {"files": [bundles.read(model, digest).files for digest in digests]}


def _attestations(model: RegisteredModel) -> Seen:
    digests = sorted({key.split("/")[3] for key in model.store.keys(f"{model.folder}/attestations")})
    return {digest: attestations.read(model, digest)[0] for digest in digests}


def _verdicts(model: RegisteredModel) -> Seen:
    """They are for people, except for what follows from them: nothing, here."""
    release = model.releases.current()
    assert release
    rollout.read_verdicts(model, release.rollout)
    Series(model, release)
    Approver(model).decide()
    return {"release": model.releases.current()}


def _judged(model: RegisteredModel) -> Seen:
    release = model.releases.current()
    assert release
    contract, evidence = evidence_for(model, release.champion)
    sums = evidence.look(release.revision, release.at, now())
    counts = join_outcomes(model).counts
    assert (sums.unreadable > 0) == (counts["unreadable"] > 0)
    parts = {name: getattr(sums, name).sort(pl_all).rows() for name, pl_all in _ORDER.items()}
    return parts | {"unreadable": sums.unreadable, "decision": judge(contract, release, sums).decision}


_ORDER = {"revisions": ["revision", "day"], "days": ["day"], "slices": ["slice", "level", "day"]}


if __name__ == "__main__":
    import json
    import sys
    import tempfile

    started = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        print(json.dumps(prove(Path(place), int(sys.argv[1])), indent=1), time.monotonic() - started)
