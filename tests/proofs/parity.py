"""The app's answers from raw rows over HTTP, against scikit-learn's for the same rows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mlops import promotion
from mlops.sandbox import TOLERANCE
from tests import synthetic
from tests.proofs.gate import Problem, own_problem, synthetic_problem
from tests.service import Service, environment
from training import data, estimator, features
from training.export import parity
from training.replay import request_rows

_BATCH = 1000


def spoilt(rows: pl.DataFrame, problem: Problem, seed: int = 0) -> pl.DataFrame:
    """The rows, a tenth of each column missing or, in categories, never seen before, where the contract allows it."""
    random = np.random.default_rng(seed)
    for name, feature in problem.contract.features.items():
        hit = pl.lit(pl.Series(random.random(rows.height) < 0.1))
        if feature.missing:
            rows = rows.with_columns(pl.when(hit).then(None).otherwise(pl.col(name)).alias(name))
        elif feature.type == "category" and feature.unknown == "other":
            rows = rows.with_columns(pl.when(hit).then(pl.lit("never seen")).otherwise(pl.col(name)).alias(name))
    return rows


def compare(folder: Path, problem: Problem, rows: pl.DataFrame) -> dict[str, Any]:
    """Release the problem's champion, send the rows, and refit what answers them beside it."""
    here, contract = environment(folder), problem.contract
    digest = synthetic.publish(here, problem.bundle(problem.champion))
    promotion.release(here.model(contract.model), digest, "parity")
    answers, started = [], time.monotonic()
    with Service(here, contract.model) as service:
        service.serves(1)
        for start in range(0, rows.height, _BATCH):
            batch = request_rows(rows[start : start + _BATCH], contract)
            answers += [p["score"] for p in service.predict(*batch)["predictions"]]
    expected = estimator.score(problem.fit(), rows, contract)
    got = np.array(answers)
    return {
        "rows": rows.height,
        "difference": parity(got, expected),
        "unknown_or_missing": int(features.inputs(rows, contract).select(pl.any_horizontal(
            (pl.col(n) == "never seen") | (pl.col(n) == "") if f.type == "category" else pl.col(n).is_nan() for n, f in contract.features.items()
        )).sum().item()),
        "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip


def prove(folder: Path) -> dict[str, Any]:
    problem, rows = own_problem(folder) or (synthetic_problem(), data.canonical(synthetic.frame(300, 200, seed=9)))
    rows = spoilt(rows.sample(50_000, seed=0), problem)
    found = compare(folder, problem, rows)
    return {
        "holds": found["difference"] <= TOLERANCE,
        "reason": "",
        "model": problem.contract.model,
        "bound": TOLERANCE,
        **found,
    }
