from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from sklearn import metrics

from mlops.contract import Contract
from training import evaluation
from training.gate import Evidence

_BARS = 25  # of the columns that matter most
Importance = dict[str, float]  # by column


def draw(contract: Contract, evidence: Evidence, importance: Importance, folder: Path) -> list[Path]:
    """One PNG for each view of the held-out rows."""
    folder.mkdir(parents=True, exist_ok=True)
    y, score = evidence.y, evidence.score
    views: dict[str, Callable[[Axes], Any]] = {
        "permutation_importance": lambda ax: _importance(ax, importance),
        "score_distribution": lambda ax: _scores(ax, contract, y, score),
        "calibration": lambda ax: _calibration(ax, contract, y, score),
        "loss_by_day": lambda ax: _days(ax, contract, evidence),
    }
    if contract.task == "binary" and 0 < y.mean() < 1:
        actual, predicted, chance = y > 0.5, score >= contract.threshold, {"plot_chance_level": True}
        matrix, precision = metrics.ConfusionMatrixDisplay, metrics.PrecisionRecallDisplay
        views |= {
            "confusion_matrix": lambda ax: matrix.from_predictions(actual, predicted, ax=ax, colorbar=False),
            "roc": lambda ax: metrics.RocCurveDisplay.from_predictions(actual, score, ax=ax, **chance),
            "precision_recall": lambda ax: precision.from_predictions(actual, score, ax=ax, **chance),
        }
    else:
        views["predicted_against_actual"] = lambda ax: _against(ax, y, score)
    written = []
    for name, view in views.items():
        figure, ax = plt.subplots(figsize=(5, 4), layout="constrained")
        view(ax)
        ax.set_title(name.replace("_", " "))
        written.append(folder / f"{name}.png")
        figure.savefig(written[-1], dpi=90)
        plt.close(figure)
    return written


def _importance(ax: Axes, importance: dict[str, float]) -> None:
    ordered = sorted(importance.items(), key=lambda item: item[1])[-_BARS:]
    ax.barh([name for name, _ in ordered], [value for _, value in ordered])
    ax.set_xlabel("loss when the column is shuffled, less the loss")


def _scores(ax: Axes, contract: Contract, y: np.ndarray, score: np.ndarray) -> None:
    if contract.task == "binary":
        ax.hist([score[y < 0.5], score[y > 0.5]], bins=40, label=["0", "1"], stacked=True)
        ax.legend(title=contract.target)
    else:
        ax.hist(score, bins=40)
    ax.set_xlabel("score")
    ax.set_ylabel("rows")


def _calibration(ax: Axes, contract: Contract, y: np.ndarray, score: np.ndarray) -> None:
    bins = evaluation.calibration_bins(score)
    what, middle = ("mean", np.mean) if contract.task == "binary" else ("median", np.median)
    middles = [[middle(values[bins == b]) for b in np.unique(bins)] for values in (score, y)]
    ax.axline((middles[0][0],) * 2, slope=1, color="grey", linestyle=":")
    ax.plot(*middles, marker="o")
    ax.set_xlabel(f"{what} score")
    ax.set_ylabel(f"{what} outcome")


def _against(ax: Axes, y: np.ndarray, score: np.ndarray) -> None:
    ax.plot(score, y, ".", alpha=0.05)
    ax.set_xlabel("score")
    ax.set_ylabel("actual")


def _days(ax: Axes, contract: Contract, evidence: Evidence) -> None:
    days, day = np.unique(evidence.day, return_inverse=True)
    unit = evaluation.scale(contract, evidence.y)
    for name, score in (("champion", evidence.champion), ("this model", evidence.score)):
        if score is not None:
            sums = np.bincount(day, evaluation.loss(contract, evidence.y, score, unit))
            ax.plot(days.astype("datetime64[D]") if contract.time else days, sums / np.bincount(day), label=name)
    ax.set_ylabel("loss")
    ax.tick_params("x", rotation=30)
    ax.legend()
