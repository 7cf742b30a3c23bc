"""The gate: may this model replace the one that serves? Every check has an estimate, a bound and a reason.

The unit of evidence is the day, since rows of one day share their weather, prices or campaigns: every interval is a
bootstrap over days. Loss must be shown not to be worse (non-inferiority); slices, calibration and fairness refuse on
evidence of harm beyond their margin.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import polars as pl
from scipy import stats
from sklearn.metrics import roc_auc_score

from mlops.contract import Contract
from mlops.errors import UserError
from mlops.model import Model
from mlops.verdict import Check, Verdict, check
from training import data, evaluation, features
from training.package import Candidate

ACCEPTABLE = ("too_good",)
_RESAMPLES = 2000
_ALPHA = 0.05
_BLOCK_DAYS = 7
_ROUNDING = 1e-6  # two scorings of one model differ by as much


@dataclass(frozen=True)
class Evidence:
    """Held-out rows that neither model has seen. Arrays are (rows,); `groups` are slices and protected columns."""

    y: np.ndarray
    day: np.ndarray
    score: np.ndarray
    baseline: np.ndarray
    champion: np.ndarray | None = None
    groups: dict[str, np.ndarray] = field(default_factory=dict)


def evidence(contract: Contract, rows: pl.DataFrame, candidate: Candidate, champion: Model | None) -> Evidence:
    """`rows`: the held-out ones. Raises UserError if they lack what the champion needs."""
    if champion and (gone := set(champion.contract.features) - set(rows.columns)):
        hint = (
            "is what the champion needs to be compared: keep it in the contract, and leave it out in features.py alone"
        )
        raise UserError("features", ", ".join(sorted(gone)), hint)
    grouped = {*contract.slices, *(name for name, feature in contract.features.items() if feature.protected)}
    scores = champion.score_arrays(features.arrays(rows, champion.contract)).astype(float) if champion else None
    return Evidence(
        y=rows[contract.target].to_numpy(),
        day=data.days(rows, contract),
        score=candidate.scores if candidate.unseen is None else candidate.unseen,
        baseline=candidate.baseline,
        champion=scores,
        groups={name: rows[name].cast(pl.String).fill_null("missing").to_numpy().astype(str) for name in grouped},
    )


def require_acceptable(accept: dict[str, str]) -> None:
    if foreign := set(accept) - set(ACCEPTABLE):
        raise UserError("accept", sorted(foreign)[0], f"only {' and '.join(ACCEPTABLE)} can be accepted by hand")


def decide(contract: Contract, evidence: Evidence, facts: list[Check], accept: dict[str, str]) -> Verdict:
    """`facts`: checks made before (leakage, golden rows, parity, size, latency); `accept`: failed checks to ignore, with
    the reason."""
    checks, untestable = [*facts, *_sanity(evidence)], []
    if np.isfinite(evidence.score).all():  # otherwise nothing else can be measured
        weights = Resampling(evidence.day)
        checks += _floors(contract, evidence, weights)
        if evidence.champion is not None:
            slices, untestable = _slices(contract, evidence)
            checks += [_enough_days(contract, evidence), *_against_champion(contract, evidence, weights), *slices]
            checks += [_calibration(contract, evidence, weights), *_fairness(contract, evidence, weights)]
    checks = [replace(c, accepted=c.accepted or accept.get(c.name, "")) if c.outcome == "fail" else c for c in checks]
    reasons = [f"{c.name}: {c.why}" for c in checks if c.failed]
    return Verdict("refused" if reasons else "passed", reasons, checks, untestable)


Bounds = tuple[float, float, float]  # lower, point, upper
Statistic = Callable[[np.ndarray], np.ndarray]  # weights (n, days) → (n,)


class Resampling:
    """Bootstrap weights of days, shape (resamples, days), and day sums of any row values."""

    def __init__(self, day: np.ndarray):
        _, self.day = np.unique(day, return_inverse=True)
        self.days = int(self.day.max()) + 1
        shares = np.full(self.days, 1 / self.days)
        self.weights = np.random.default_rng(0).multinomial(self.days, shares, _RESAMPLES).astype(float)

    def sums(self, values: np.ndarray) -> np.ndarray:
        return np.bincount(self.day, values, minlength=self.days)

    def mean(self, values: np.ndarray, of: np.ndarray | None = None) -> Statistic:
        """Of the rows where `of` is 1."""
        of = np.ones(len(values)) if of is None else of
        sums, rows = self.sums(values * of), self.sums(of)
        return lambda w: (w @ sums) / np.maximum(w @ rows, 1e-9)

    def bounds(self, statistic: Statistic, alpha: float = _ALPHA) -> Bounds:
        """One-sided each: with alpha 0.05 the lower and the upper 95 % bound, around the point."""
        point = float(statistic(np.ones((1, self.days)))[0])
        lower, upper = np.quantile(statistic(self.weights), [alpha, 1 - alpha])
        return float(lower), point, float(upper)


def _interval(name: str, passed: bool, bounds: Bounds, bound: str, why: str) -> Check:
    """`why` is followed by the figures."""
    low, point, high = bounds
    return check(name, passed, point, bound, f"{why} {point:+.4f} [{low:+.4f}, {high:+.4f}]", low=low, high=high)


def _sanity(evidence: Evidence) -> list[Check]:
    finite = float(np.isfinite(evidence.score).mean())
    _, counts = np.unique(np.round(evidence.score, 6), return_counts=True)
    common = float(counts.max() / len(evidence.score))
    return [
        check("sanity:finite", finite == 1, finite, "= 1", "some scores are not finite"),
        check("sanity:constant", common <= 0.5, common, "≤ 0.5", f"{common:.0%} of the rows get the very same score"),
    ]


def _floors(contract: Contract, evidence: Evidence, weights: Resampling) -> list[Check]:
    """Days on which the champion misses one are hard days: there its own value is the floor, and the comparison with it
    decides."""
    gate, y, served = contract.gate, evidence.y, evidence.champion
    gain, error, chance, auc = _absolute(contract, y, evidence.score)
    theirs = _absolute(contract, y, served) if served is not None else (np.inf, 0.0, 0.0, 1.0)
    least_gain, least_auc = min(gate.min_gain, theirs[0]), min(gate.min_auc, theirs[3])
    most = max(gate.max_calibration_error, theirs[1] - theirs[2])
    bounds = _loss_difference(contract, evidence, evidence.baseline, weights)
    behind = 0.0
    if served is not None:
        behind = max(_loss_difference(contract, replace(evidence, score=served), evidence.baseline, weights)[1], 0.0)
    better = "not better than the baseline (a linear model: ship that, estimator: linear in parameters.yaml; of a "
    better += "recalibration the champion): loss difference"
    why = f"calibration error {error:.3f}, of which {chance:.3f} may be chance"
    checks = [
        check("floor:gain", gain >= least_gain, gain, f"≥ {least_gain:.3g}",
              f"gains only {gain:.4f} over the best constant answer"),
        _interval("floor:baseline", bounds[1] <= behind + _ROUNDING, bounds, f"point ≤ {behind:.3g}", better),
        check("floor:calibration", error - chance <= most, error, f"≤ {most:.3g} + {chance:.3f} by chance", why),
    ]  # fmt: skip
    if contract.task == "binary" and 0 < y.mean() < 1:
        checks.append(check("floor:auc", auc >= least_auc, auc, f"≥ {least_auc:.3g}", f"AUC {auc:.3f}"))
    return checks


def _absolute(contract: Contract, y: np.ndarray, score: np.ndarray) -> tuple[float, float, float, float]:
    """Gain over the best constant answer, calibration error and how much of it may be chance, AUC (1 without classes)."""
    gain = 1 - float(evaluation.loss(contract, y, score, evaluation.scale(contract, y)).mean())
    mixed = contract.task == "binary" and 0 < y.mean() < 1
    return (
        gain,
        *evaluation.calibration_error(contract, y, score),
        float(roc_auc_score(y > 0.5, score)) if mixed else 1.0,
    )


def _enough_days(contract: Contract, evidence: Evidence) -> Check:
    days, weeks = np.unique(evidence.day), contract.gate.min_days // _BLOCK_DAYS
    blocks = len(np.unique((days - days[0]) // _BLOCK_DAYS)) if contract.time else len(days)
    if contract.time is None:
        bound, found = f"≥ {contract.gate.min_days} groups of rows", f"{len(days)} held-out groups of rows"
    else:
        bound = f"≥ {contract.gate.min_days} days in ≥ {weeks} weeks"
        found = f"{len(days)} held-out days in {blocks} weeks"
    enough = len(days) >= contract.gate.min_days and blocks >= weeks
    return check("holdout", enough, len(days), bound, f"{found} are too few to decide; use a longer --holdout")


def _against_champion(contract: Contract, evidence: Evidence, weights: Resampling) -> list[Check]:
    gate = contract.gate
    assert evidence.champion is not None
    bounds = _loss_difference(contract, evidence, evidence.champion, weights)
    _, point, upper = bounds
    hint = f"a gain of {-point:.3f} over the champion is too good to be true; look for a leak, then --accept too_good"
    return [
        _interval("loss", upper < gate.margin and point <= gate.point_margin, bounds,
                  f"upper bound < {gate.margin}, point ≤ {gate.point_margin}",
                  f"not shown to be as good as the champion (this hold-out shows differences above {upper - point:.4f}): "
                  "loss difference"),
        check("too_good", -point <= gate.too_good, -point, f"≤ {gate.too_good}", hint),
    ]  # fmt: skip


def _differences(contract: Contract, evidence: Evidence, other: np.ndarray) -> np.ndarray:
    """By how much the model's loss exceeds that of another's scores, per row."""
    unit = evaluation.scale(contract, evidence.y)
    mine, theirs = (evaluation.loss(contract, evidence.y, score, unit) for score in (evidence.score, other))
    return mine - theirs


def _loss_difference(contract: Contract, evidence: Evidence, other: np.ndarray, weights: Resampling) -> Bounds:
    return weights.bounds(weights.mean(_differences(contract, evidence, other)))


def _slices(contract: Contract, evidence: Evidence) -> tuple[list[Check], list[str]]:
    """One check a slice with enough rows and days: t over day sums, Holm over slices."""
    assert evidence.champion is not None
    gate, difference = contract.gate, _differences(contract, evidence, evidence.champion)
    found, untestable = [], []
    for column in contract.slices:
        for value in np.unique(evidence.groups[column]):
            inside = evidence.groups[column] == value
            _, day = np.unique(evidence.day[inside], return_inverse=True)
            rows = np.bincount(day).astype(float)
            name = f"slice:{column}={value}"
            if inside.sum() < gate.min_slice_rows or len(rows) < gate.min_slice_days:
                untestable.append(name)
                continue
            mean = float(difference[inside].mean())
            residual = np.bincount(day, difference[inside] - mean)
            error = np.sqrt((residual**2).sum() * len(rows) / (len(rows) - 1)) / rows.sum()
            t = (mean - gate.slice_margin) / max(error, 1e-12)
            found.append((float(stats.t.sf(t, len(rows) - 1)), name, mean, len(rows)))
    checks, rejecting = [], True
    for position, (p, name, mean, days) in enumerate(sorted(found)):
        rejecting = rejecting and p < _ALPHA / (
            len(found) - position
        )  # Holm: stop at the first that is not significant
        why = f"loss rises by {mean:.3f} on this slice (p = {p:.1e})"
        checks.append(check(name, not rejecting, mean, f"≤ {gate.slice_margin}", why, n=days))
    return checks, untestable


def calibration_error(contract: Contract, y: np.ndarray, score: np.ndarray, weights: Resampling) -> Statistic:
    rows, bins = weights.sums(np.ones(len(y))), evaluation.calibration_bins(score)
    gap = evaluation.calibration_gap(contract, y, score)
    gaps = np.stack([weights.sums((bins == b) * gap) for b in range(evaluation.CALIBRATION_BINS)], 1)
    return lambda w: np.abs(w @ gaps).sum(1) / (w @ rows)


def _calibration(contract: Contract, evidence: Evidence, weights: Resampling) -> Check:
    assert evidence.champion is not None
    new, old = (calibration_error(contract, evidence.y, s, weights) for s in (evidence.score, evidence.champion))
    bounds, margin = weights.bounds(lambda w: new(w) - old(w)), contract.gate.calibration_margin
    why = "calibration error rises by"
    return _interval("calibration", bounds[0] <= margin, bounds, f"lower bound ≤ {margin}", why)


def _fairness(contract: Contract, evidence: Evidence, weights: Resampling) -> list[Check]:
    """Between groups of a protected column: the gap of calibration, and (binary) of the true-positive rate."""
    assert evidence.champion is not None
    y, margin, checks = evidence.y, contract.gate.fairness_margin, []
    measures = {"calibration": (lambda score: evaluation.calibration_gap(contract, y, score), np.ones(len(y)))}
    if contract.task == "binary":
        measures["true-positive rate"] = (lambda score: (score >= contract.threshold) * y, y)
    for column in [name for name, feature in contract.features.items() if feature.protected]:
        values, counts = np.unique(evidence.groups[column], return_counts=True)
        enough = counts >= contract.gate.min_slice_rows
        groups = [evidence.groups[column] == value for value in values[enough]]
        if len(groups) < 2:
            continue
        for measure, (value, base) in measures.items():

            def gap(score: np.ndarray, value=value, base=base, groups=groups) -> Callable[[np.ndarray], np.ndarray]:
                tops = np.stack([weights.sums(value(score) * group) for group in groups], 1)
                rows = np.stack([weights.sums(base * group) for group in groups], 1)
                return lambda w: np.ptp((w @ tops) / np.maximum(w @ rows, 1e-9), axis=1)

            new, old = gap(evidence.score), gap(evidence.champion)
            bounds = weights.bounds(lambda w, new=new, old=old: new(w) - old(w))
            why = f"the gap in {measure} between groups grows by"
            name = f"fairness:{column}:{measure}"
            checks.append(_interval(name, bounds[0] <= margin, bounds, f"lower bound ≤ {margin}", why))
    return checks
