"""The judge answers whatever is in the log, and no row of a hostile caller advances a challenger that does harm.

An honest caller's rows, in half of the logs with planted harm, beside at most as many of another API key, whose moments,
entities, features, scores and outcomes are the worst that it could think of.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mlops.contract import Contract
from mlops.releases import Mode, Release
from mlops.verdict import DECISIONS, Verdict
from monitoring.judge import judge
from monitoring.partitions import OUTCOMES
from monitoring.sums import Measures, add_up
from tests.synthetic import contract_yaml

LOGS = 20_000
HARMS = ("faults", "slow", "constant", "inverted", "shifted", "worse")
_MEASURES = {task: Measures(Contract.model_validate(contract_yaml(task))) for task in ("binary", "regression")}
_NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
_DAYS, _A_DAY = 10, 100
_WILD = np.array([0, 1, -1, 0.5, 1e-300, 1e300, -1e300, 3.4e38, math.inf, -math.inf, math.nan])
_MOMENTS = np.array([0.0, -1.0, 7_258_118_399.0, 7_258_118_400.0, 253_402_300_799.0, 1e300, math.nan, math.inf])


def prove(_: Path, logs: int = LOGS) -> dict[str, Any]:
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:  # polars does not survive a fork
        found = Counter(pool.map(outcome, range(logs), chunksize=50))
    wrong = [
        name for name in found if name.startswith("raised") or (name.endswith(" harm: advance") and name[:2] != "no")
    ]
    return {"logs": logs, "found": dict(sorted(found.items())), "holds": not wrong, "reason": ", ".join(wrong)}


def outcome(seed: int) -> str:
    """Whether there was harm, and the decision; or what was raised, a warning too."""
    harm, verdict = "", None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            harm, verdict = verdict_on(seed)
    except Exception as error:
        return f"raised {type(error).__name__}: {str(error)[:80]}"
    assert verdict.decision in DECISIONS
    return f"{harm or 'no'} harm: {verdict.decision}"


def verdict_on(seed: int, hostile: bool = True) -> tuple[str, Verdict]:
    """The harm that was planted, or '', and the verdict."""
    random = np.random.default_rng(seed)
    harm = "" if seed % 2 else str(random.choice(HARMS))
    task, mode = random.choice(["binary", "regression"]), random.choice(["canary", "ab", "shadow"])
    if harm == "worse" and mode == "shadow":
        mode = "canary"  # a shadow is not judged by outcomes
    rows, outcomes = _honest(random, harm, task == "binary")
    if hostile:
        made, told = _hostile(random, rows)
        rows, outcomes = pl.concat([rows, made]), pl.concat([outcomes, told])
    measures = _MEASURES[str(task)]
    schema = measures.columns
    nothing = measures.sums(pl.DataFrame(schema=schema), pl.DataFrame(schema=OUTCOMES), 1, _NOW)
    found = measures.sums(
        rows.select(*schema).cast(pl.Schema(schema)), outcomes.select(*OUTCOMES).cast(pl.Schema(OUTCOMES)), 1, _NOW
    )
    sums = add_up([nothing, found], found.entities, 0)
    return harm, judge(measures.contract, _release(mode), sums)


def _release(mode: Mode) -> Release:
    return Release(
        revision=1, at=_NOW - timedelta(days=_DAYS), by="", why="", nonce="0", mode=mode, champion="a" * 64,
        challenger="b" * 64, weight=None if mode == "shadow" else 0.5, rollout="x",
    )  # fmt: skip


def _honest(random: np.random.Generator, harm: str, binary: bool) -> tuple[pl.DataFrame, pl.DataFrame]:
    n = _DAYS * _A_DAY
    truth = random.normal(size=n)
    champion = truth + 0.4 * random.normal(size=n)
    challenger = truth + 0.4 * random.normal(size=n)
    value = truth + 0.1 * random.normal(size=n)
    match harm:
        case "constant":
            challenger[:] = 0.3
        case "inverted":
            challenger = -challenger
        case "shifted":
            challenger = challenger + 4
        case "worse":
            challenger = 1.5 * random.normal(size=n)
    if binary:
        champion, challenger = (1 / (1 + np.exp(-score)) for score in (champion, challenger))
        value = (value > 0).astype(float)
    bad = random.random(n) < 0.1 if harm in {"faults", "slow"} else np.zeros(n, bool)
    bad |= random.random(n) < (0.3 if harm == "slow" else 0)
    fault = [("slow" if harm == "slow" else "error") if each else None for each in bad]
    live = random.random() < 0.5
    event = _NOW.timestamp() - 86400 * (_DAYS - np.arange(n) / _A_DAY)
    at = event if live else _NOW.timestamp() - 3600 + np.arange(n)  # or a replay
    return _frames(random, n, "honest", {
        "at": at, "event": event, "score": champion, "champion_score": champion, "fault": fault,
        "challenger_score": np.where(bad & (harm == "faults"), math.nan, challenger), "value": value,
    })  # fmt: skip


def _hostile(random: np.random.Generator, honest: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """As many rows as the honest caller's at most, each column made up in a way of its own."""
    n = int(random.choice([1, 20, 60, 200, honest.height]))
    one_day = float(random.integers(0, 84_000)) * 86400
    events = [
        np.full(n, random.choice(_MOMENTS)), np.full(n, _NOW.timestamp() + 86400 * 1300), one_day + random.random(n) * 86400,
        random.integers(0, 84_000, n) * 86400.0, random.choice(honest["event"].to_numpy(), n), random.choice(_MOMENTS, n),
    ]  # fmt: skip
    same = random.normal(size=n) * 50  # both models agree on what is far apart
    scores = [
        (random.choice(_WILD, n), random.choice(_WILD, n)), (same, same), (same > 0, same > 0), (random.random(n) * 1e-9, random.random(n)),
    ]  # fmt: skip
    champion, challenger = scores[random.integers(len(scores))]
    values = [challenger, random.choice(_WILD, n), np.round(random.random(n)), np.full(n, math.nan)]
    faults = [[None] * n, random.choice(["busy", "slow", "error", "", "x"], n).tolist()]
    return _frames(random, n, "hostile", {
        "at": random.choice(honest["at"].to_numpy(), n), "event": events[random.integers(len(events))],
        "champion_score": np.asarray(champion, float), "challenger_score": np.asarray(challenger, float), "score": np.asarray(challenger, float),
        "value": np.asarray(values[random.integers(len(values))], float), "fault": faults[int(random.random() < 0.2)],
    })  # fmt: skip


def _frames(
    random: np.random.Generator, n: int, caller: str, columns: dict[str, Any]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    levels = (
        ["red", "green", "blue"] if caller == "honest" else [f"{i}" for i in range(int(random.choice([1, 3, 500])))]
    )
    entities = [f"{caller} {i}" for i in range(n)] if random.random() < 0.8 else [None] * n
    rows = pl.DataFrame(
        columns | {
            "id": [f"{caller} {i}" for i in range(n)], "revision": np.ones(n, int), "arm": random.integers(0, 2, n), "caller": [caller] * n,
            "entity": entities, "challenger_seconds": np.full(n, 0.001), "feature.color": random.choice(levels, n), "feature.region": ["north"] * n,
        },
        schema_overrides={"fault": pl.String, "entity": pl.String}, strict=False,
    )  # fmt: skip
    told = rows.select("id", "value", at=pl.col("at"), caller=pl.col("caller"), changed=pl.lit(value=False))
    return rows.select(sorted(rows.columns)).drop("value"), told


if __name__ == "__main__":
    print(prove(Path(), int(sys.argv[1])))
