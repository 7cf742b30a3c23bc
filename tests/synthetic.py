"""A small problem of no particular domain: time, day effects, missing values, categories, a protected column."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from mlops import bundle as bundles
from mlops.attestations import attest
from mlops.bundle import Bundle
from mlops.contract import Contract
from mlops.environment import Environment
from training import data, estimator, evaluation, package
from training.definition import ModelDefinition, load_definition
from training.export import export
from training.features import preprocess

START = datetime(2024, 1, 1, tzinfo=UTC)
MODEL = "synthetic"


def contract_yaml(task: str = "binary", **changes: Any) -> dict[str, Any]:
    contract: dict[str, Any] = {
        "model": MODEL,
        "task": task,
        "target": "y" if task == "binary" else "amount",
        "time": {"column": "at", "lead_minutes": 60},
        "outcome_at": "known_at",
        "entity": ["customer"],
        "after": ["settled"],
        "features": {
            "size": {"type": "number", "range": [-50, 50]},
            "heat": {"type": "number", "known_at": "heat_at", "missing": True, "drift": "season"},
            "color": {"type": "category"},
            "region": {"type": "category", "unknown": "reject"},
            "group": {"type": "category", "protected": True, "log": "hash"},
            "member": {"type": "boolean"},
        },
        "slices": ["color", "region"],
        "windows": {"train": "0..0.6", "holdout": "0.6..1.0"},
        "judge": {"budget_ms": 500},  # on a busy machine who answers would be a matter of luck
    }
    return contract | changes


def frame(days: int = 100, rows_a_day: int = 60, seed: int = 0) -> pl.DataFrame:
    """Rows whose chance of y depends on size, heat, color and a shock that a day's rows share."""
    random = np.random.default_rng(seed)
    n = days * rows_a_day
    day = np.repeat(np.arange(days), rows_a_day)
    size, heat = random.normal(size=n), random.normal(size=n) + np.sin(day / 20)
    color = random.choice(["red", "green", "blue", "grey"], n, p=[0.4, 0.3, 0.2, 0.1])
    member = random.random(n) < 0.5
    shock = random.normal(scale=0.3, size=days)[day]
    signal = 1.2 * size + 0.4 * heat + 0.8 * np.abs(heat) + 0.7 * (color == "red") - 0.5 * member * size + shock - 1.1
    at = [
        START + timedelta(days=int(d), minutes=int(m)) for d, m in zip(day, random.integers(120, 1400, n), strict=True)
    ]
    return pl.DataFrame({
        "at": at,
        "heat_at": [moment - timedelta(hours=2) for moment in at],
        "known_at": [moment + timedelta(hours=3) for moment in at],
        "customer": [f"c{number}" for number in random.integers(0, 500, n)],
        "size": size.round(3),
        "heat": pl.Series(heat.round(2)).scatter(random.choice(n, n // 20, replace=False), None),
        "color": color,
        "region": random.choice(["north", "south"], n),
        "group": random.choice(["a", "b"], n),
        "member": member,
        "settled": signal + random.normal(scale=0.1, size=n),
        "y": (random.random(n) < 1 / (1 + np.exp(-signal))).astype(int),
        "amount": (10 * signal + random.normal(scale=2, size=n)).round(2),
    })  # fmt: skip


def write_model(
    models: Path, rows: pl.DataFrame, contract: dict[str, Any] | None = None, features: str = ""
) -> ModelDefinition:
    """A model's folder below `models`, as a fork has it; `features` is the text of its features.py."""
    contract = contract or contract_yaml()
    folder = models / contract["model"]
    folder.mkdir(parents=True, exist_ok=True)
    rows.write_parquet(folder / "rows.parquet")
    (folder / "contract.yaml").write_text(yaml.safe_dump(contract, sort_keys=False))
    (folder / "data.py").write_text(
        f"from training.source import read\n\n\ndef load():\n    return read({str(folder / 'rows.parquet')!r})\n"
    )
    if features:
        (folder / "features.py").write_text(features)
    return load_definition(contract["model"], folder)


def build(
    contract: Contract | None = None, rows: pl.DataFrame | None = None, seed: int = 0, **parameters: Any
) -> Bundle:
    """A real bundle in about a second, without a server: what `train` makes, less the gate."""
    contract = contract or Contract.model_validate(contract_yaml())
    rows = data.canonical(frame() if rows is None else rows)
    split = data.split(rows, contract)
    train, holdout = split.train.frame, split.holdout.frame
    parameters = parameters if parameters.get("estimator") == "linear" else {"max_iter": 20, **parameters}
    unfitted = estimator.build(contract, parameters, seed, preprocess)
    pipeline = estimator.fit(unfitted, train, contract)
    origin = package.provenance(contract, split, seed, parameters)
    truth = holdout[contract.target].to_numpy()
    metrics = evaluation.summary(contract, truth, estimator.score(pipeline, holdout, contract))
    scores = estimator.score(pipeline, train, contract)
    return package.bundle(contract, pipeline, export(pipeline, contract), train, scores, origin, metrics)


def publish(environment: Environment, bundle: Bundle, verdict: str = "passed") -> str:
    """Write and sign a bundle as a training does; returns the digest. `promotion.release` takes it from there."""
    model = environment.model(bundle.contract.model)
    digest = bundles.write(model, bundle)
    attest(model, "built", digest)
    reasons = [] if verdict == "passed" else ["loss: planted"]
    attest(model, "gate", digest, verdict=verdict, details={"reasons": reasons})
    return digest


def request(**changes: Any) -> dict[str, Any]:
    """One valid row."""
    row = {"size": 0.5, "heat": 1.0, "color": "red", "region": "north", "group": "a", "member": True, "customer": "c1"}
    return row | changes
