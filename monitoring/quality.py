"""Live quality: what outcomes that have matured say of the model version that serves."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy import stats

from mlops.contract import Contract
from monitoring.daily import Days
from monitoring.judge import mature


@dataclass(frozen=True)
class Estimate:
    """A mean over rows with its 95 % interval, whose unit of chance is the day; `z` in standard errors from 0."""

    mean: float
    low: float
    high: float
    z: float


@dataclass(frozen=True)
class Quality:
    """Of one model version. `days`, the mature ones, oldest first: day, rows, n (with an outcome), loss, gap, auc. The gap is
    how far scores lie above outcomes: of probabilities, or half the mean error, up or down (regression). The estimates are
    over the newest `window` of them; None before there are so many."""

    model_version: str
    days: pl.DataFrame
    window: int
    loss: Estimate | None
    gap: Estimate | None
    auc: float | None

    def beyond(self, contract: Contract) -> bool:
        """Whether the gap is larger than the contract allows, and not by chance."""
        rules = contract.retraining
        return self.gap is not None and abs(self.gap.mean) > rules.max_gap and abs(self.gap.z) > rules.min_z


def all_versions(days: Days) -> pl.DataFrame:
    """By day: rows, last, n."""
    return days.quality.group_by("day").agg(pl.col("rows", "n").sum(), pl.col("last").max()).sort("day")


def quality(contract: Contract, days: Days, model_version: str, unit: float) -> Quality:
    """`unit`: of the loss (the profile's)."""
    own = days.quality.filter(pl.col("model_version") == model_version)
    own = mature(contract, own, pl.col("n"), by_rows=True).filter(pl.col("n") > 0)
    if contract.task == "binary":
        gap = pl.col("score") - pl.col("value")
    else:
        gap = pl.col("above") * pl.col("error").sum() / pl.col("n").sum() / unit
    own = own.with_columns(gap=gap)
    ranks = days.ranks.filter(pl.col("model_version") == model_version)
    window = contract.retraining.window_days
    newest, enough = own.tail(window), own.height >= window
    each = [auc(part) for part in (ranks.filter(pl.col("day") == day) for day in own["day"])]
    shown = own.select("day", "rows", "n", loss=pl.col("loss") / pl.col("n"), gap=pl.col("gap") / pl.col("n"))
    return Quality(
        model_version, shown.with_columns(auc=pl.Series(each, dtype=pl.Float64)), window,
        mean_by_days(newest["loss"].to_numpy(), newest["n"].to_numpy()) if enough else None,
        mean_by_days(newest["gap"].to_numpy(), newest["n"].to_numpy()) if enough else None,
        auc(ranks.filter(pl.col("day").is_in(newest["day"].implode()))) if enough else None,
    )  # fmt: skip


def mean_by_days(sums: np.ndarray, rows: np.ndarray) -> Estimate:
    """Ratio estimator, clustered by day; `sums` and `rows` have the shape (days,)."""
    days, mean = len(rows), float(sums.sum() / rows.sum())
    residual = sums - mean * rows
    error = float(np.sqrt((residual**2).sum() * days / (days - 1)) / rows.sum())
    half = float(stats.t.isf(0.025, days - 1)) * error
    return Estimate(mean, mean - half, mean + half, mean / max(error, 1e-12))


def auc(ranks: pl.DataFrame) -> float | None:
    """None if all outcomes are of one class, or of none."""
    summed = ranks.group_by("rank").agg(pl.col("positive", "negative").sum()).sort("rank")
    positive, negative = (summed[name].to_numpy().astype(float) for name in ("positive", "negative"))
    pairs = positive.sum() * negative.sum()
    return float((positive * (negative.cumsum() - negative / 2)).sum() / pairs) if pairs else None
