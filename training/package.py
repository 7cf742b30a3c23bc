from __future__ import annotations

import hashlib
import platform
from importlib.metadata import version
from typing import Any

import numpy as np
import polars as pl
from sklearn.pipeline import Pipeline

from mlops.bundle import Bundle, canonical
from mlops.contract import Contract
from mlops.environment import ROOT
from training import profile
from training.data import Cut

_LIBRARIES = ("scikit-learn", "skl2onnx", "onnx", "numpy", "polars")


def lock_sha256() -> str:
    """What was installed, by the requirements file that says so."""
    lock = ROOT / "requirements" / "training.txt"
    return hashlib.sha256(lock.read_bytes()).hexdigest() if lock.exists() else "none"


def provenance(contract: Contract, fingerprint: str, train: Cut, holdout: Cut, seed: int, parameters: dict[str, Any]) -> dict[str, Any]:
    """All that determines the bundle, and nothing of the moment it was made."""
    return {
        "model": contract.model,
        "data": {"fingerprint": fingerprint, "train_rows": train.frame.height, "holdout_rows": holdout.frame.height},
        "windows": {"train": str(train.window), "holdout": str(holdout.window)},
        "seed": seed,
        "parameters": parameters,
        "lock": lock_sha256(),
        "architecture": platform.machine(),
        "python": ".".join(platform.python_version_tuple()[:2]),
        "libraries": {name: version(name) for name in _LIBRARIES},
    }


def bundle(
    contract: Contract,
    pipeline: Pipeline,
    graph: bytes,
    train: pl.DataFrame,
    scores: np.ndarray,
    origin: dict[str, Any],
    metrics: dict[str, float],
) -> Bundle:
    return Bundle({
        "model.onnx": graph,
        "contract.json": contract.json_bytes(),
        "profile.json": canonical(profile.profile(contract, train, scores)),
        "golden.json": canonical(profile.golden(contract, train, scores)),
        "card.md": card(contract, pipeline, origin, metrics).encode(),
        "provenance.json": canonical(origin),
    })  # fmt: skip


def card(contract: Contract, pipeline: Pipeline, origin: dict[str, Any], metrics: dict[str, float]) -> str:
    rows = "\n".join(
        f"| {name} | {f.type} | {f.known_at} | {list(f.range) if f.range else ''} | {'yes' if f.missing else 'no'} | {f.drift}{', protected' if f.protected else ''} |"
        for name, f in contract.features.items()
    )
    measured = "\n".join(f"| {name} | {value:.6g} |" for name, value in metrics.items())
    windows = origin["windows"]
    return f"""# Model card: {contract.model}

{contract.question or f"Predicts {contract.target}."}

Task: {contract.task}, target `{contract.target}`. Estimator: {type(pipeline.steps[-1][1]).__name__},
trained on {windows["train"]} ({origin["data"]["train_rows"]} rows), measured on {windows["holdout"]} ({origin["data"]["holdout_rows"]} rows).
Data fingerprint `{origin["data"]["fingerprint"]}`, seed {origin["seed"]}.

## Held-out metrics
| metric | value |
|---|---|
{measured}

## Request
| column | type | known at | range | may be missing | drift |
|---|---|---|---|---|---|
{rows}

Not for rows outside these ranges, nor for decisions that the question above does not name.
"""
