"""How often the judge is wrong, and what it sees: real losses of the example's models by day, a look after every day."""

from __future__ import annotations

import itertools
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from mlops import log_schema, releases
from mlops.contract import Contract, Window
from mlops.environment import only_model
from mlops.releases import Release
from mlops.store import Store
from monitoring.judge import judge
from monitoring.sequential import log_e_rate, mean_sequence
from monitoring.sums import Sums
from tests import synthetic
from tests.ids import new_id
from tests.proofs.closed import Rollout
from training import data, estimator, evaluation
from training.definition import load_definition

RELEASES, LIMIT, DAYS = 1000, 0.065, 28
GOOD, PROMOTED = 10, 9
_TRAINED = (
    (0.0, 0.08),
    (0.0, 0.16),
    (0.08, 0.16),
    (0.0, 0.247),
    (0.0, 0.33),
    (0.16, 0.414),
    (0.0, 0.414),
    (0.08, 0.414),
    (0.247, 0.414),
    (0.33, 0.414),
)
_TESTED = (0.414, 1.0)
_DAY = date(2024, 1, 1)


@dataclass(frozen=True)
class Problem:
    """Rows no model has seen, in time order: `day` 0, 1, …; `scores` by model, shape (models, rows); `levels` by slice."""

    contract: Contract
    day: np.ndarray
    y: np.ndarray
    scores: np.ndarray
    losses: np.ndarray
    levels: dict[str, np.ndarray]

    @property
    def days(self) -> int:
        return int(self.day.max()) + 1


def problem() -> Problem:
    made = load_definition(only_model())
    contract, frame = made.contract, data.canonical(made.load())
    tested = data.cut(frame, contract, Window(start=_TESTED[0], end=_TESTED[1])).frame
    assert contract.time
    tested = tested.sort(contract.time.column)
    y = tested[contract.target].cast(pl.Float64).to_numpy()
    local = tested[contract.time.column].dt.convert_time_zone(contract.time.zone).dt.date()
    scores = []
    for start, end in _TRAINED:
        train = data.cut(frame, contract, Window(start=start, end=end)).frame
        fitted = estimator.fit(made.pipeline(contract, made.parameters, 0), train, contract)
        scores.append(estimator.score(fitted, tested, contract))
    losses = np.array([evaluation.loss(contract, y, score, evaluation.scale(contract, y)) for score in scores])
    levels = {name: tested[name].fill_null("").to_numpy() for name in contract.slices}
    return Problem(contract, local.rank("dense").to_numpy().astype(int) - 1, y, np.array(scores), losses, levels)


def prove(folder: Path, number: int = RELEASES) -> dict[str, Any]:
    given = problem()
    found: dict[str, Any] = {"releases": number}
    spawned = get_context("spawn")  # polars' threads do not survive a fork
    with ProcessPoolExecutor(2, spawned, _share, (given,)) as pool:
        for name in ("split of one model", "signs flipped", "exactly the margin worse"):
            counts = np.sum(list(pool.map(_one, [name] * number, range(number), chunksize=25)), axis=0)
            found[name] = {
                what: {"rate": round(count / number, 4), "upper": round(_upper(int(count), number), 4)}
                for what, count in zip(("winners", "aborts", "promotions"), counts, strict=True)
            }
    found["good"] = good(given, folder)
    found["effects_seen_with_80_%_power"] = power(given)
    wrong = {
        "split of one model": ("winners", "aborts"), "signs flipped": ("winners", "aborts"), "exactly the margin worse": ("winners", "promotions"),
    }  # fmt: skip
    bars = {f"{name}: {what}": found[name][what]["upper"] <= LIMIT for name, each in wrong.items() for what in each}
    bars["good ones promoted"] = found["good"]["promoted"] >= PROMOTED
    missed = [bar for bar, holds in bars.items() if not holds]
    return found | {"holds": not missed, "reason": "; ".join(missed)}


def _upper(count: int, number: int) -> float:
    return float(stats.beta.ppf(0.95, count + 1, number - count))


_shared: list[Problem] = []


def _share(given: Problem) -> None:
    _shared[:] = [given]


def _release() -> Release:
    at = datetime(2024, 1, 1, tzinfo=UTC)
    fields: dict[str, Any] = {"at": at, "by": "", "why": "", "nonce": "0", "mode": "canary", "weight": 0.5}
    return Release(revision=1, champion="a" * 64, challenger="b" * 64, rollout="x", **fields)


def _one(name: str, seed: int) -> tuple[bool, bool, bool]:
    """Whether a release saw a winner, an abort, a promotion in four weeks, at any look."""
    given, random = _shared[0], np.random.default_rng(seed)
    start = int(random.integers(0, given.days - DAYS - 1))
    champion, challenger = random.choice(len(given.scores), 2, replace=False)
    if name == "split of one model":
        challenger = champion
    signs = random.choice([-1.0, 1.0], DAYS + 2)
    change = given.contract.gate.margin if name == "exactly the margin worse" else 0.0
    parts = [
        _day(given, start + i, champion, challenger, signs[i], change, random, name == "split of one model")
        for i in range(DAYS + 2)
    ]
    won = aborted = promoted = False
    for n in range(given.contract.judge.min_days, DAYS + 1):
        seen = _seen(parts[: n + 2])  # the latest day is not over, and the one before it not mature
        verdict = judge(given.contract, _release(), seen)
        loss = next(each for each in verdict.checks if each.name == "loss")
        aborted = aborted or verdict.decision == "abort"
        promoted = promoted or (not aborted and loss.outcome == "pass")
        won = won or (loss.high is not None and loss.high < 0)  # what an A/B test asks for
    return won, aborted, promoted


def _day(
    given: Problem,
    number: int,
    champion: int,
    challenger: int,
    sign: float,
    change: float,
    random: np.random.Generator,
    apart: bool,
) -> dict[str, pl.DataFrame]:
    """What the log would add up to for one day. `apart`: each row scored by the model of its arm alone."""
    mine = given.day == number
    day, n = _DAY + timedelta(days=number), int(mine.sum())
    last = (datetime(2024, 1, 1, tzinfo=UTC) + timedelta(days=number + 1, hours=-1)).timestamp()
    lost, base = given.losses[challenger][mine], given.losses[champion][mine]
    d = sign * (lost - base) + change
    arm = random.random(n) < 0.5
    x, z = (
        np.log(np.clip(s, 1e-6, 1 - 1e-6) / np.clip(1 - s, 1e-6, 1))
        for s in (given.scores[champion][mine], given.scores[challenger][mine])
    )
    x, z = (x, z) if sign > 0 else (z, x)
    both = 0 if apart else n
    sums = {"n": both, "x": x.sum(), "y": z.sum(), "xx": (x * x).sum(), "yy": (z * z).sum(), "xy": (x * z).sum()}
    revisions = {"revision": 1, "day": day, "rows": n, "attempts": n, "timed": n, "faults": 0, "slow": 0}
    revisions |= {"exposed": int(arm.sum())} | sums
    days = {"day": day, "rows": n, "n": both, "d": float(d.sum()) if both else 0.0, "last": last}
    days |= {"n0": int((~arm).sum()), "l0": float(base[~arm].sum()), "n1": int(arm.sum()), "l1": float(base[arm].sum())}
    slices = [
        {"slice": name, "level": str(level), "day": day, "n": int(here.sum()), "d": float(d[here].sum())}
        for name, levels in given.levels.items() if both for level in np.unique(levels[mine]) for here in [levels[mine] == level]
    ]  # fmt: skip
    return {
        "revisions": pl.DataFrame([revisions]),
        "days": pl.DataFrame([days]),
        "slices": pl.DataFrame(slices, schema=_SLICES),
    }


_SLICES = {"slice": pl.String, "level": pl.String, "day": pl.Date, "n": pl.Int64, "d": pl.Float64}


def _seen(parts: list[dict[str, pl.DataFrame]]) -> Sums:
    whole = {name: pl.concat([part[name] for part in parts]) for name in parts[0]}
    entities = pl.DataFrame({"revision": [1, 1], "arm": [0, 1], "entities": [500, 500]})
    return Sums(whole["revisions"], whole["days"], whole["slices"], entities)


def good(given: Problem, folder: Path) -> dict[str, Any]:
    """Challengers better by the margin over four weeks, through the real controller: on which day each was promoted."""
    pairs = []
    for start, (champion, challenger) in itertools.product(
        (0, 14, 28), itertools.permutations(range(len(given.scores)), 2)
    ):
        window = (given.day >= start) & (given.day < start + DAYS)
        if (given.losses[challenger][window] - given.losses[champion][window]).mean() <= -given.contract.gate.margin:
            pairs.append((start, champion, challenger))
    chosen = [pairs[i] for i in np.random.default_rng(0).choice(len(pairs), GOOD, replace=False)]
    made = load_definition(only_model())
    # Its contract is what the judge reads of it.
    bundle = synthetic.build(given.contract, made.load().sample(20_000, seed=0))
    took = [_until_promoted(given, Rollout(folder / f"good-{i}", bundle), *pair) for i, pair in enumerate(chosen)]
    return {"of": GOOD, "promoted": sum(days is not None for days in took), "event_days": took, "of_pairs": len(pairs)}


def _until_promoted(given: Problem, rollout: Rollout, start: int, champion: int, challenger: int) -> int | None:
    for number in range(DAYS + 1):
        rows = np.flatnonzero(given.day == start + number)
        for half in np.array_split(np.random.default_rng(number).permutation(rows), 2):
            release = rollout.now
            if not release.in_rollout:
                return number if release.champion == rollout.digests[1] else None
            write(rollout.store, given, release, half, champion, challenger)
            rollout.control.judge()
    return None


def write(store: Store, given: Problem, release: Release, rows: np.ndarray, champion: int, challenger: int) -> None:
    at, random = releases.now().timestamp(), np.random.default_rng(int(rows[0]))
    scored = [
        log_schema.PredictionRecord(
            id=new_id(), at=at, revision=release.revision, model_version=release.champion, score=float(given.scores[champion][i]), prediction=0.0,
            features={name: str(levels[i]) for name, levels in given.levels.items()}, entity=str(i),
            event=(datetime(2024, 1, 1, 5, tzinfo=UTC) + timedelta(days=int(given.day[i]), seconds=int(i) % 40_000)).timestamp(),
            arm=int(random.random() < (release.weight or 0)), champion_score=float(given.scores[champion][i]),
            challenger_score=float(given.scores[challenger][i]), challenger_seconds=0.0001,
        ) for i in rows
    ]  # fmt: skip
    told = [log_schema.OutcomeRecord(row.id, float(given.y[i]), at) for row, i in zip(scored, rows, strict=True)]
    name, model = new_id(), given.contract.model
    for kind, revision, records in (("predictions", release.revision, scored), ("outcomes", 0, told)):
        key = log_schema.segment_key(kind, model, at, revision, name)
        store.put(key, b"".join(map(log_schema.line, records)))


def power(given: Problem, number: int = 400) -> dict[str, Any]:
    """The smallest effects that are seen in four of five releases. A change added to every day's loss moves the interval by as
    much, so the least one that would have been seen can be read off each release."""
    table: dict[str, Any] = {}
    random = np.random.default_rng(0)
    for requests in (1_000, 10_000, 100_000):
        needed: dict[str, list[float]] = {"paired": [], "apart at 50 %": [], "apart at 5 %": []}
        for _ in range(number):
            champion, challenger = random.choice(len(given.scores), 2, replace=False)
            start = int(random.integers(0, given.days - DAYS))
            differences = {name: [] for name in needed}
            for day in range(start, start + DAYS):
                mine = random.choice(np.flatnonzero(given.day == day), requests // DAYS)
                lost, base = given.losses[challenger][mine], given.losses[champion][mine]
                differences["paired"].append((lost - base).mean())
                for name, weight in (("apart at 50 %", 0.5), ("apart at 5 %", 0.05)):
                    arm = random.random(len(mine)) < weight
                    differences[name].append(base[arm].mean() - base[~arm].mean() if 0 < arm.sum() < len(arm) else 0.0)
            for name, values in differences.items():
                centred = np.array(values) - np.mean(values)
                needed[name].append(-max(mean_sequence(centred[:n], 0.05)[1] for n in range(7, DAYS + 1)))
        table[f"{requests}"] = {
            f"loss, {name}": round(float(np.quantile(values, 0.8)), 4) for name, values in needed.items()
        } | _rates(requests)
    return table


def _rates(requests: int) -> dict[str, float]:
    """The smallest rate of faults and of slow answers seen in four of five releases."""
    random, found = np.random.default_rng(1), {}
    for name, bound in (("faults", 0.001), ("slow", 0.01)):
        for rate in np.geomspace(bound * 1.05, 0.5, 60):
            events = random.binomial(requests, rate, 200)
            if np.mean([log_e_rate(int(each), requests, bound) >= np.log(400) for each in events]) >= 0.8:
                found[name] = round(float(rate), 5)
                break
    return found
