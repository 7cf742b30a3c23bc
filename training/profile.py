"""The reference bins of the training rows, and rows that identify the model by their scores."""

from typing import Any

import numpy as np
import polars as pl

from mlops import profile as binning
from mlops.bundle import MAX_WATCHED
from mlops.contract import Contract
from training import data, evaluation, leakage

_NUMBER_BINS = 10
_LEVELS = 19  # rarer ones are pooled: PSI of many small bins is noise
_GOLDEN_ROWS = 50
_DAYS = 400  # the newest: a drift analysis compares days with days


def _number_bins(values: np.ndarray) -> dict[str, Any]:
    present = values[~np.isnan(values)]
    cuts = np.linspace(0, 1, _NUMBER_BINS + 1)[1:-1]
    return _with_shares({"edges": np.unique(np.quantile(present, cuts)).tolist() if len(present) else []}, values)


def _category_bins(values: pl.Series) -> dict[str, Any]:
    counted = values.alias("level").drop_nulls().value_counts().sort(["count", "level"], descending=[True, False])
    return _with_shares({"levels": counted["level"].head(_LEVELS).to_list()}, values.to_list())


def _with_shares(bins: dict[str, Any], values: Any) -> dict[str, Any]:
    return bins | {"expected": (binning.count(bins, values) / len(values)).round(9).tolist()}


def profile(contract: Contract, frame: pl.DataFrame, scores: np.ndarray) -> dict[str, Any]:
    """Reference bins of each feature and of the score, and the levels of categories that reject unknown ones."""
    bins = {
        name: _category_bins(column) if feature.type == "category" else _number_bins(column.cast(pl.Float64).to_numpy())
        for name, feature in contract.features.items()
        for column in [frame[name]]
    }
    bins["score"] = _number_bins(scores.astype(float))
    rejecting = [name for name, feature in contract.features.items() if feature.unknown == "reject"]
    watched, scored = _watched(contract, frame), frame.with_columns(score=pl.Series(scores, dtype=pl.Float64))
    target = frame[contract.target].cast(pl.Float64)
    scale = evaluation.scale(contract, target.to_numpy())
    return {
        "rows": frame.height,
        "watched": watched,
        "bins": bins,
        "days": _days(contract, scored, {name: bins[name] for name in (*watched, "score")}) if contract.time else {},
        "levels": {name: frame[name].drop_nulls().unique().sort().to_list() for name in rejecting},
        "target": {"mean": target.mean(), "std": target.std(), "scale": scale},
    }


def _days(contract: Contract, frame: pl.DataFrame, bins: dict[str, Any]) -> dict[str, dict[str, list[int]]]:
    """Rows by day, feature and bin."""
    frame = frame.with_columns(day=data.local_dates(frame, contract))
    found = {}
    for (day,), rows in sorted(frame.partition_by("day", as_dict=True).items())[-_DAYS:]:
        columns = {name: rows[name].to_list() if "levels" in each else rows[name].cast(pl.Float64).to_numpy()
                   for name, each in bins.items()}  # fmt: skip
        found[f"{day}"] = {name: binning.count(bins[name], values).tolist() for name, values in columns.items()}
    return found


def _watched(contract: Contract, frame: pl.DataFrame) -> list[str]:
    """All features, or of very many those that alone tell most."""
    if len(contract.features) <= MAX_WATCHED:
        return sorted(contract.features)
    alone = leakage.single_feature_auc(contract, frame)
    return sorted(sorted(alone, key=alone.__getitem__, reverse=True)[:MAX_WATCHED])


def golden(contract: Contract, frame: pl.DataFrame, scores: np.ndarray) -> dict[str, Any]:
    """Raw rows spread over the training window, with the scores that every copy of the model must give."""
    positions = np.unique(np.linspace(0, frame.height - 1, _GOLDEN_ROWS).astype(int))
    rows = frame.select(list(contract.features))[positions].to_dicts()
    known = [{name: value for name, value in row.items() if value is not None} for row in rows]
    return {"rows": known, "scores": [float(score) for score in scores[positions]]}
