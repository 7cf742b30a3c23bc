"""What the training rows looked like, and the rows by which a copy of the model is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from mlops.contract import Contract
from training import evaluate

_NUMBER_BINS = 10
_LEVELS = 19  # rarer ones are pooled: PSI of many small bins is noise
_GOLDEN_ROWS = 50


def _number_bins(values: np.ndarray) -> dict[str, Any]:
    present = values[~np.isnan(values)]
    edges = np.unique(np.quantile(present, np.linspace(0, 1, _NUMBER_BINS + 1)[1:-1])) if len(present) else np.array([])
    positions = np.where(np.isnan(values), len(edges) + 1, np.searchsorted(edges, values, side="left"))
    return {"edges": edges.tolist(), "expected": _shares(positions, len(edges) + 2)}


def _category_bins(values: pl.Series) -> dict[str, Any]:
    counted = values.drop_nulls().value_counts().sort(["count", values.name], descending=[True, False])
    levels = counted[values.name].head(_LEVELS).to_list()
    known = {level: i for i, level in enumerate(levels)}
    positions = [len(levels) + 1 if v is None else known.get(v, len(levels)) for v in values.to_list()]
    return {"levels": levels, "expected": _shares(np.array(positions), len(levels) + 2)}


def _shares(positions: np.ndarray, bins: int) -> list[float]:
    return (np.bincount(positions, minlength=bins) / len(positions)).round(9).tolist()


def profile(contract: Contract, frame: pl.DataFrame, scores: np.ndarray) -> dict[str, Any]:
    """Reference bins of each feature and of the score, the levels of categories that reject unknown ones."""
    bins = {
        name: _category_bins(frame[name]) if feature.type == "category" else _number_bins(frame[name].cast(pl.Float64).to_numpy())
        for name, feature in contract.features.items()
    }
    rejecting = [name for name, feature in contract.features.items() if feature.unknown == "reject"]
    target = frame[contract.target].cast(pl.Float64)
    return {
        "rows": frame.height,
        "bins": bins | {"score": _number_bins(scores.astype(float))},
        "levels": {name: frame[name].drop_nulls().unique().sort().to_list() for name in rejecting},
        "target": {"mean": target.mean(), "std": target.std(), "scale": evaluate.scale(contract, target.to_numpy())},
    }


def golden(contract: Contract, frame: pl.DataFrame, scores: np.ndarray) -> dict[str, Any]:
    """Raw rows spread over the training part, with the scores that any copy of the model must give."""
    positions = np.unique(np.linspace(0, frame.height - 1, _GOLDEN_ROWS).astype(int))
    rows = [{n: v for n, v in row.items() if v is not None} for row in frame.select(list(contract.features))[positions].to_dicts()]
    return {"rows": rows, "scores": [float(s) for s in scores[positions]]}
