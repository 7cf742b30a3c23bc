"""How far figures of the held-out rows may be off: 95 % intervals from resampled days, of all rows and by group."""

from dataclasses import dataclass

import numpy as np

from mlops.contract import Contract
from training import evaluation
from training.gate import Bounds, Evidence, Resampling, Statistic, calibration_error

_ALPHA = 0.025  # on each side
_RANKS = 500  # of scores


def of_metrics(contract: Contract, y: np.ndarray, score: np.ndarray, weights: Resampling) -> dict[str, Bounds]:
    """By the names of `evaluation.summary`."""
    unit, mean = evaluation.scale(contract, y), weights.mean
    loss, square = evaluation.loss(contract, y, score, unit), mean((score - y) ** 2)
    found: dict[str, Statistic] = {
        "loss": mean(loss), "gain": mean(1 - loss), "bias": mean(score - y),
        "calibration_error": calibration_error(contract, y, score, weights),
    }  # fmt: skip
    if contract.task == "binary":
        found |= {"log_loss": mean(loss * unit), "brier": square, "positive_rate": mean(y)}
        found |= {"accuracy": mean((score >= contract.threshold) == (y > 0.5))} | _of_ranks(y > 0.5, score, weights)
    else:
        off, spread = mean(y - y.mean()), mean((y - y.mean()) ** 2)
        found |= {"mean_absolute_error": mean(np.abs(y - score)), "root_mean_squared_error": lambda w: square(w) ** 0.5}
        found |= {"r2": lambda w: 1 - square(w) / np.maximum(spread(w) - off(w) ** 2, 1e-9)}
    return {name: weights.bounds(statistic, _ALPHA) for name, statistic in found.items()}


def _of_ranks(positive: np.ndarray, score: np.ndarray, weights: Resampling) -> dict[str, Statistic]:
    """From positive and negative rows by day and rank, the highest score first: sorting each resampling would be slow."""
    edges = np.unique(np.quantile(score, np.linspace(0, 1, _RANKS + 1)[1:-1]))
    cell = weights.day * _RANKS + _RANKS - 1 - np.searchsorted(edges, score, side="right")
    counts = [np.bincount(cell, rows, weights.days * _RANKS).reshape(-1, _RANKS) for rows in (positive, ~positive)]

    def auc(w: np.ndarray) -> np.ndarray:
        p, n = (w @ count for count in counts)
        above = np.cumsum(p, 1) - p / 2
        return (n * above).sum(1) / np.maximum(p.sum(1) * n.sum(1), 1e-9)

    def average_precision(w: np.ndarray) -> np.ndarray:
        p, n = (w @ count for count in counts)
        precision = (np.cumsum(p, 1) - p / 2) / np.maximum(np.cumsum(p + n, 1) - (p + n) / 2, 1e-9)
        return (p * precision).sum(1) / np.maximum(p.sum(1), 1e-9)

    return {"auc": auc, "average_precision": average_precision}


@dataclass(frozen=True)
class Group:
    """The held-out rows with one value of a column. No figures if they are too few to say anything."""

    column: str
    value: str
    rows: int
    days: int
    figures: dict[str, Bounds]


def of_groups(contract: Contract, evidence: Evidence, weights: Resampling) -> list[Group]:
    """Of slices and protected columns: loss, calibration gap, and (binary) true-positive rate."""
    y, score, limits, every = evidence.y, evidence.score, contract.gate, np.ones(len(evidence.y))
    measures = {
        "loss": (evaluation.loss(contract, y, score, evaluation.scale(contract, y)), every),
        "calibration gap": (evaluation.calibration_gap(contract, y, score), every),
    }
    if contract.task == "binary":
        measures["true-positive rate"] = ((score >= contract.threshold).astype(float), y)
    found = []
    for column in (name for name in contract.features if name in evidence.groups):
        values, place = np.unique(evidence.groups[column], return_inverse=True)
        for number, value in enumerate(values):
            inside = place == number
            rows, days, figures = int(inside.sum()), len(np.unique(evidence.day[inside])), {}
            if rows >= limits.min_slice_rows and days >= limits.min_slice_days:
                figures = {
                    name: weights.bounds(weights.mean(of_rows, of * inside), _ALPHA)
                    for name, (of_rows, of) in measures.items()
                    if (of * inside).any()
                }
            found.append(Group(column, str(value), rows, days, figures))
    return found
