import numpy as np
import polars as pl
from sklearn import metrics

from mlops.contract import Contract
from mlops.model import Model
from training import features

_CLIP = 1e-6
CALIBRATION_BINS = 10
_IMPORTANCE_ROWS = 5000


def loss(contract: Contract, y: np.ndarray, score: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """Per row, in units of `scale`: log-loss (binary), absolute error (regression)."""
    if contract.task == "binary":
        p = np.clip(score, _CLIP, 1 - _CLIP)
        return -np.where(y > 0.5, np.log(p), np.log1p(-p)) / scale
    return np.abs(y - score) / scale


def scale(contract: Contract, y: np.ndarray) -> float:
    """The unit of the loss: that of the best constant answer, the base rate (binary) or the median (regression). So rare
    events and balanced classes, grams and tons have the same margins."""
    constant = np.full(len(y), y.mean() if contract.task == "binary" else np.median(y))
    return float(loss(contract, y, constant).mean()) or 1.0


def calibration_bins(score: np.ndarray) -> np.ndarray:
    """The bin (of ten with as many rows) of each score."""
    edges = np.quantile(score, np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1])
    return np.searchsorted(edges, score, side="right")


def calibration_gap(contract: Contract, y: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Per row, 0 on average if the model is calibrated: probability less outcome (binary); half the mean loss, up or down
    (regression): a score is a median, so half of the values lie below it, however long their tail."""
    if contract.task == "binary":
        return score - y
    return np.sign(score - y) / 2 * np.mean(np.abs(score - y)) / scale(contract, y)


def calibration_error(contract: Contract, y: np.ndarray, score: np.ndarray) -> tuple[float, float]:
    """Expected calibration error over ten bins, and how much of it so few rows of a calibrated model show by chance."""
    bins, gap = calibration_bins(score), calibration_gap(contract, y, score)
    sums, squares = (np.bincount(bins, values, minlength=CALIBRATION_BINS) for values in (gap, gap**2))
    return float(np.abs(sums).sum() / len(y)), float(np.sqrt(2 / np.pi * squares).sum() / len(y))


def summary(contract: Contract, y: np.ndarray, score: np.ndarray) -> dict[str, float]:
    unit = scale(contract, y)
    mean = float(loss(contract, y, score, unit).mean())
    found = {
        "loss": mean,
        "gain": 1 - mean,
        "calibration_error": calibration_error(contract, y, score)[0],
        "bias": float(np.mean(score - y)),
    }
    if contract.task == "binary":
        answer = y > 0.5
        predicted = score >= contract.threshold
        mixed = answer.any() and not answer.all()
        found |= {
            "auc": float(metrics.roc_auc_score(answer, score)) if mixed else float("nan"),
            "average_precision": float(metrics.average_precision_score(answer, score)) if mixed else float("nan"),
            "log_loss": mean * unit,
            "brier": float(np.mean((score - y) ** 2)),
            "accuracy": float(np.mean(predicted == answer)),
            "positive_rate": float(answer.mean()),
        }
    else:
        found |= {
            "mean_absolute_error": float(np.mean(np.abs(y - score))),
            "root_mean_squared_error": float(np.sqrt(np.mean((y - score) ** 2))),
            "r2": float(metrics.r2_score(y, score)),
        }
    return found


def permutation_importance(contract: Contract, model: Model, frame: pl.DataFrame) -> dict[str, float]:
    """By how much the loss rises when one column is shuffled."""
    frame = frame[np.sort(np.random.default_rng(0).permutation(frame.height)[:_IMPORTANCE_ROWS])]
    y = frame[contract.target].to_numpy()
    unit = scale(contract, y)

    def mean_loss(frame: pl.DataFrame) -> float:
        scores = model.score_arrays(features.arrays(frame, contract)).astype(float)
        return float(loss(contract, y, scores, unit).mean())

    whole = mean_loss(frame)
    return {name: mean_loss(frame.with_columns(pl.col(name).shuffle(seed=1))) - whole for name in contract.features}
