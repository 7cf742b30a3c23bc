"""The gate: may this model replace the one that serves? Every check has a value, a bound and a reason.

The unit of evidence is the day, since rows of one day share their weather, prices or campaigns: every interval
is a bootstrap over days. Loss must be shown not to be worse (non-inferiority); slices, calibration and fairness refuse
on evidence of harm beyond their margin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy import stats
from sklearn.metrics import roc_auc_score

from mlops.contract import Contract
from training import evaluate

_RESAMPLES = 2000
_ALPHA = 0.05
_BLOCK_DAYS = 7
_ROUNDING = 1e-6  # two scorings of one model differ by as much


@dataclass(frozen=True)
class Check:
    name: str
    passed: bool
    value: float | str
    bound: str
    why: str
    accepted: str = ""  # a person's reason to let it pass


@dataclass(frozen=True)
class Evidence:
    """Held-out rows that neither model has seen. Arrays are (rows,); `groups` are slices and protected columns."""

    y: np.ndarray
    day: np.ndarray
    score: np.ndarray
    baseline: np.ndarray
    champion: np.ndarray | None = None
    groups: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    checks: list[Check]
    untestable: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return all(check.passed or check.accepted for check in self.checks)

    @property
    def reasons(self) -> list[str]:
        return [f"{check.name}: {check.why}" for check in self.checks if not check.passed and not check.accepted]


def judge(contract: Contract, evidence: Evidence, facts: list[Check]) -> Verdict:
    """`facts`: checks established before (leakage, golden rows, parity, size, latency)."""
    checks = [*facts, *_sanity(evidence)]
    if not np.isfinite(evidence.score).all():
        return Verdict(checks)  # nothing else can be measured
    weights = _Resampling(evidence.day)
    checks += _floors(contract, evidence, weights)
    if evidence.champion is None:
        return Verdict(checks)
    slices, untestable = _slices(contract, evidence)
    checks += [_enough_days(contract, evidence), *_against_champion(contract, evidence, weights), *slices]
    checks += [_calibration(contract, evidence, weights), *_fairness(contract, evidence, weights)]
    return Verdict(checks, untestable)


class _Resampling:
    """Bootstrap weights of days, shape (resamples, days), and day sums of any row values."""

    def __init__(self, day: np.ndarray):
        _, self.day = np.unique(day, return_inverse=True)
        self.days = int(self.day.max()) + 1
        shares = np.full(self.days, 1 / self.days)
        self.weights = np.random.default_rng(0).multinomial(self.days, shares, _RESAMPLES).astype(float)

    def sums(self, values: np.ndarray) -> np.ndarray:
        return np.bincount(self.day, values, minlength=self.days)

    def bounds(self, statistic: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float, float]:
        """Lower 95 % bound, point, upper 95 % bound (one-sided each). `statistic`: weights (n, days) → (n,)."""
        point = float(statistic(np.ones((1, self.days)))[0])
        lower, upper = np.quantile(statistic(self.weights), [_ALPHA, 1 - _ALPHA])
        return float(lower), point, float(upper)


def _sanity(evidence: Evidence) -> list[Check]:
    finite = bool(np.isfinite(evidence.score).all())
    _, counts = np.unique(np.round(evidence.score, 6), return_counts=True)
    common = float(counts.max() / len(evidence.score))
    return [
        Check("sanity:finite", finite, float(np.isfinite(evidence.score).mean()), "= 1", "scores that are no numbers"),
        Check("sanity:constant", common <= 0.5, common, "≤ 0.5", f"{common:.0%} of the rows get the very same score"),
    ]


def _floors(contract: Contract, evidence: Evidence, weights: _Resampling) -> list[Check]:
    gate, y = contract.gate, evidence.y
    mean = float(evaluate.loss(contract, y, evidence.score, evaluate.scale(contract, y)).mean())
    gain = evaluate.constant_loss(contract, y) - mean
    lower, point, upper = _loss_difference(contract, evidence, evidence.baseline, weights)
    shown = f"{point:+.4f} [{lower:+.4f}, {upper:+.4f}]"
    error, chance = evaluate.calibration_error(contract, y, evidence.score)
    checks = [
        Check("floor:gain", gain >= gate.min_gain, gain, f"≥ {gate.min_gain}", f"gains only {gain:.4f} over the best constant answer"),
        Check(
            "floor:baseline", point <= _ROUNDING, shown, "point ≤ 0",
            f"loss {mean:.4f}, against the linear baseline {shown}; if that stays better, ship it: estimator: linear in parameters.yaml",
        ),
        Check(
            "floor:calibration", error - chance <= gate.max_calibration_error, error, f"≤ {gate.max_calibration_error} + {chance:.3f} by chance",
            f"calibration error {error:.3f}, of which {chance:.3f} may be chance",
        ),
    ]  # fmt: skip
    if contract.task == "binary" and 0 < y.mean() < 1:
        auc = float(roc_auc_score(y > 0.5, evidence.score))
        checks.append(Check("floor:auc", auc >= gate.min_auc, auc, f"≥ {gate.min_auc}", f"AUC {auc:.3f}"))
    return checks


def _enough_days(contract: Contract, evidence: Evidence) -> Check:
    days = np.unique(evidence.day)
    blocks = len(np.unique((days - days[0]) // _BLOCK_DAYS)) if contract.time else len(days)
    enough = len(days) >= contract.gate.min_days and blocks >= contract.gate.min_days // _BLOCK_DAYS
    if contract.time is None:
        bound, what = f"≥ {contract.gate.min_days} groups of rows", f"{len(days)} held-out groups of rows"
    else:
        bound = f"≥ {contract.gate.min_days} days in ≥ {contract.gate.min_days // _BLOCK_DAYS} weeks"
        what = f"{len(days)} held-out days in {blocks} weeks"
    return Check("holdout", enough, len(days), bound, f"{what} decide nothing; take a longer --holdout")


def _against_champion(contract: Contract, evidence: Evidence, weights: _Resampling) -> list[Check]:
    gate = contract.gate
    assert evidence.champion is not None
    lower, point, upper = _loss_difference(contract, evidence, evidence.champion, weights)
    shown = f"{point:+.4f} [{lower:+.4f}, {upper:+.4f}]"
    return [
        Check("loss", upper < gate.margin and point <= gate.point_margin, shown, f"upper bound < {gate.margin}, point ≤ {gate.point_margin}", f"not shown to be as good as the champion: loss difference {shown}"),
        Check("too_good", -point <= gate.too_good, -point, f"≤ {gate.too_good}", f"a gain of {-point:.3f} over the champion is too good to be true; look for a leak, then --accept too_good"),
    ]  # fmt: skip


def _differences(contract: Contract, evidence: Evidence, other: np.ndarray) -> np.ndarray:
    """By how much the model's loss exceeds that of another's scores, per row."""
    unit = evaluate.scale(contract, evidence.y)
    return evaluate.loss(contract, evidence.y, evidence.score, unit) - evaluate.loss(contract, evidence.y, other, unit)


def _loss_difference(contract: Contract, evidence: Evidence, other: np.ndarray, weights: _Resampling) -> tuple[float, float, float]:
    difference = _differences(contract, evidence, other)
    rows, sums = weights.sums(np.ones(len(difference))), weights.sums(difference)
    return weights.bounds(lambda w: (w @ sums) / (w @ rows))


def _slices(contract: Contract, evidence: Evidence) -> tuple[list[Check], list[str]]:
    """One check a slice with enough rows and days: t over day sums, Holm over slices."""
    assert evidence.champion is not None
    difference = _differences(contract, evidence, evidence.champion)
    found, untestable = [], []
    for column in contract.slices:
        for value in np.unique(evidence.groups[column]):
            inside = evidence.groups[column] == value
            _, day = np.unique(evidence.day[inside], return_inverse=True)
            rows = np.bincount(day).astype(float)
            name = f"slice:{column}={value}"
            if inside.sum() < contract.gate.min_slice_rows or len(rows) < contract.gate.min_slice_days:
                untestable.append(name)
                continue
            mean = float(difference[inside].mean())
            residual = np.bincount(day, difference[inside] - mean)
            error = np.sqrt((residual**2).sum() * len(rows) / (len(rows) - 1)) / rows.sum()
            t = (mean - contract.gate.slice_margin) / max(error, 1e-12)
            found.append((float(stats.t.sf(t, len(rows) - 1)), name, mean))
    checks, still = [], True
    for position, (p, name, mean) in enumerate(sorted(found)):
        still = still and p < _ALPHA / (len(found) - position)  # Holm: stop refusing at the first that is not significant
        bound = f"≤ {contract.gate.slice_margin}"
        checks.append(Check(name, not still, mean, bound, f"loss rises by {mean:.3f} on this slice (p = {p:.1e})"))
    return checks, untestable


def _calibration(contract: Contract, evidence: Evidence, weights: _Resampling) -> Check:
    assert evidence.champion is not None
    rows = weights.sums(np.ones(len(evidence.y)))

    def error(score: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        bins, gap = evaluate.calibration_bins(score), evaluate.calibration_gap(contract, evidence.y, score)
        gaps = np.stack([weights.sums((bins == b) * gap) for b in range(evaluate.CALIBRATION_BINS)], 1)
        return lambda w: np.abs(w @ gaps).sum(1) / (w @ rows)

    new, old = error(evidence.score), error(evidence.champion)
    lower, point, upper = weights.bounds(lambda w: new(w) - old(w))
    margin = contract.gate.calibration_margin
    shown = f"{point:+.4f} [{lower:+.4f}, {upper:+.4f}]"
    return Check("calibration", lower <= margin, shown, f"lower bound ≤ {margin}", f"calibration error rises by {shown}")


def _fairness(contract: Contract, evidence: Evidence, weights: _Resampling) -> list[Check]:
    """Between groups of a protected column: the gap of calibration, and (binary) of the true-positive rate."""
    assert evidence.champion is not None
    y, margin, checks = evidence.y, contract.gate.fairness_margin, []
    for column in [name for name, feature in contract.features.items() if feature.protected]:
        values, counts = np.unique(evidence.groups[column], return_counts=True)
        groups = [evidence.groups[column] == v for v, n in zip(values, counts, strict=True) if n >= contract.gate.min_slice_rows]
        if len(groups) < 2:
            continue
        measures = {"calibration": (lambda s: evaluate.calibration_gap(contract, y, s), np.ones(len(y)))}
        if contract.task == "binary":
            measures["true-positive rate"] = (lambda s: (s >= contract.threshold) * y, y)
        for measure, (value, base) in measures.items():

            def gap(score: np.ndarray, value=value, base=base, groups=groups) -> Callable[[np.ndarray], np.ndarray]:
                tops = np.stack([weights.sums(value(score) * group) for group in groups], 1)
                rows = np.stack([weights.sums(base * group) for group in groups], 1)
                return lambda w: np.ptp((w @ tops) / np.maximum(w @ rows, 1e-9), axis=1)

            new, old = gap(evidence.score), gap(evidence.champion)
            lower, point, upper = weights.bounds(lambda w, new=new, old=old: new(w) - old(w))
            shown = f"{point:+.3f} [{lower:+.3f}, {upper:+.3f}]"
            why = f"the gap in {measure} between groups grows by {shown}"
            checks.append(Check(f"fairness:{column}:{measure}", lower <= margin, shown, f"lower bound ≤ {margin}", why))
    return checks
