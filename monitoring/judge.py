"""Champion against challenger: abort, forward, or not enough data; never forward on what is missing or broken.

Faults and slowness are judged row by row, the shape of the scores at once and only where it is grossly wrong, the loss
on outcomes by days, since the rows of one day share their weather, prices or campaigns. Every bound holds under any number of
looks; what may abort shares out its chance of a false alarm.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, time, timedelta
from typing import Any, Literal
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
from scipy import stats

from mlops import trials
from mlops.contract import Contract
from mlops.releases import Release
from monitoring.evidence import Seen
from monitoring.sequential import log_e_rate, log_e_split, mean_sequence

Decision = Literal["abort", "forward", "wait"]
_ALPHA = 0.05  # of a promotion
_ALPHA_FAULTS, _ALPHA_LOSS, _ALPHA_SLICES, _ALPHA_SPLIT = 0.01, 0.02, 0.01, 0.001
_SHAPE_ROWS, _SHAPE_Z, _DESIGN_EFFECT = 200, 4.0, 10.0  # rows that share a moment say less than so many
_LATELY_DAYS = 2
_MIN_KNOWN = 0.5  # of a day's rows: a day whose outcomes are missing is none
_MIN_DAY = 0.2  # of the usual rows: a day that has hardly begun is not the latest


@dataclass(frozen=True)
class Criterion:
    """`estimate` with `low` and `high` against `bound`; `n` rows or days."""

    name: str
    verdict: Decision
    n: int
    estimate: float | None
    low: float | None
    high: float | None
    bound: float
    why: str


@dataclass(frozen=True)
class Verdict:
    decision: Decision
    reasons: list[str]
    criteria: list[Criterion]
    rows: int  # that both scored

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def judge(contract: Contract, release: Release, seen: Seen) -> Verdict:
    """`contract` is the champion's; `release` the record that serves."""
    rules = contract.judge
    here = seen.epochs.filter(pl.col("epoch") == release.epoch)
    lately = here.filter(pl.col("day") >= pl.col("day").max() - timedelta(days=_LATELY_DAYS - 1))  # what was good before hides nothing
    criteria: list[Criterion] = []
    for rows, when, tests in ((seen.epochs, "since the start", 4), (lately, "lately", 4 * max(seen.days.height, 1))):
        criteria += [*_rates(contract, rows, when, tests), *_shape(contract, rows, when)]
    loss = _loss(contract, release, seen)
    criteria += [loss, *_slices(contract, seen)]
    if (split := _split(release, seen)) is not None:
        criteria.append(split)
    total = int(seen.epochs["n"].sum())
    if harm := [criterion.why for criterion in criteria if criterion.verdict == "abort"]:
        return Verdict("abort", harm, criteria, total)
    missing = []
    if seen.unreadable:
        missing.append(f"{seen.unreadable} files of the log cannot be read")
    scored = int(here["n"].sum())
    if scored < rules.min_rows:
        missing.append(f"{scored} of {rules.min_rows} rows scored by both at this weight")
    if not all(math.isfinite(value) for value in _moments(seen.epochs).values()):
        missing.append("the log holds scores that are no numbers")
    if (trials.following(release, rules) or 1.0) >= rules.outcomes_from and loss.verdict != "forward":
        missing.append(loss.why)
    if split and split.verdict != "forward":
        missing.append(split.why)
    return Verdict("wait" if missing else "forward", missing or [f"nothing speaks against it; {loss.why}"], criteria, total)


def _rates(contract: Contract, epochs: pl.DataFrame, when: str, tests: int) -> Iterator[Criterion]:
    """`tests`: among how many the chance of a false alarm is shared out; each day that is the latest begins one."""
    rules = contract.judge
    faults, slow = (
        ("faults", "attempts", rules.max_fault_rate, "failed"),
        ("slow", "timed", rules.max_slow_rate, "took longer than the budget"),
    )
    for name, among, bound, word in (faults, slow):
        events, attempts = int(epochs[name].sum()), int(epochs[among].sum())
        harm = log_e_rate(events, attempts, bound) >= math.log(tests / _ALPHA_FAULTS)
        low, high = _interval(events, attempts)
        why = f"{events} of {attempts} requests {word} {when}, against {bound:.2%}"
        yield Criterion(f"{name} {when}", "abort" if harm else "forward", attempts, events / max(attempts, 1), low, high, bound, why)


def _interval(events: int, trials: int) -> tuple[float, float]:
    """Clopper and Pearson's, for people: the decision is the e-process's."""
    if trials == 0:
        return 0.0, 1.0
    low, high = stats.beta.ppf(0.025, events, trials - events + 1), stats.beta.ppf(0.975, events + 1, trials - events)
    return float(np.nan_to_num(low, nan=0.0)), float(np.nan_to_num(high, nan=1.0))


def _moments(epochs: pl.DataFrame) -> dict[str, float]:
    return {name: float(epochs[name].sum()) for name in ("n", "x", "y", "xx", "yy", "xy")}


def _shape(contract: Contract, epochs: pl.DataFrame, when: str) -> Iterator[Criterion]:
    """Gross faults of the scores, within so few rows that no outcome is needed: constant, inverted, shifted."""
    rules, sums = contract.judge, _moments(epochs)
    n = sums["n"]
    if n < _SHAPE_ROWS:
        return
    mean_x, mean_y = sums["x"] / n, sums["y"] / n
    # Within days: that a whole day is scored higher or lower is no matter of shape.
    by_day = epochs.filter(pl.col("n") > 0)
    within = {a + b: float((by_day[a + b] - by_day[a] * by_day[b] / by_day["n"]).sum()) / n for a, b in ("xx", "yy", "xy")}
    var_x, var_y = max(within["xx"], 0.0), max(within["yy"], 0.0)
    effective = n / _DESIGN_EFFECT
    spread = math.sqrt(var_y / var_x) if var_x > 0 else 1.0
    widest = spread * math.exp(_SHAPE_Z / math.sqrt(2 * effective))
    constant = var_x > 1e-9 and widest < rules.min_spread
    why = f"its scores vary {spread:.2f} times as much as the champion's {when}, against {rules.min_spread:g}"
    yield Criterion(f"spread {when}", "abort" if constant else "forward", int(n), spread, None, widest, rules.min_spread, why)
    if var_x > 1e-9 and var_y > 1e-9:
        correlation = within["xy"] / math.sqrt(var_x * var_y)
        z, half = math.atanh(max(-0.999999, min(0.999999, correlation))), _SHAPE_Z / math.sqrt(max(effective - 3, 1))
        low, high = math.tanh(z - half), math.tanh(z + half)
        why = f"its scores correlate {correlation:.2f} with the champion's {when}, against {rules.min_correlation:g}"
        harm = high < rules.min_correlation
        yield Criterion(f"correlation {when}", "abort" if harm else "forward", int(n), correlation, low, high, rules.min_correlation, why)
    unit = 1.0 if contract.task == "binary" else math.sqrt(var_x) or 1.0
    shift = (mean_y - mean_x) / unit
    half = _SHAPE_Z * math.sqrt((var_x + var_y) / effective) / unit
    harm = abs(shift) - half > rules.max_shift
    why = f"its mean score lies {shift:+.2f} {'logits' if contract.task == 'binary' else 'standard deviations'} off {when}, against {rules.max_shift:g}"
    yield Criterion(f"shift {when}", "abort" if harm else "forward", int(n), shift, shift - half, shift + half, rules.max_shift, why)


def mature(contract: Contract, days: pl.DataFrame) -> pl.DataFrame:
    """The days that count: over for long enough, and their outcomes there. Time is the log's own, so that a replay of a
    month in an hour is judged as the month was."""
    if days.height == 0:
        return days
    usual = days.filter(pl.col("rows") >= _MIN_DAY * pl.col("rows").median())
    latest = float(usual["last"].max() or 0)  # ty: ignore[invalid-argument-type]
    zone = ZoneInfo(contract.time.zone if contract.time else "UTC")
    ends = [datetime.combine(day + timedelta(days=1), time(), zone).timestamp() for day in days["day"]]
    over = pl.Series(ends) + 3600 * contract.judge.maturity_hours <= latest
    return days.filter(over & (pl.max_horizontal("n", pl.col("n0") + pl.col("n1")) >= _MIN_KNOWN * pl.col("rows")))


def differences(days: pl.DataFrame) -> np.ndarray:
    """The challenger's loss less the champion's by day, shape (days,): of rows that both scored; of the two arms' rows on
    days on which these are fewer."""
    paired = (pl.col("n") > 0) & (2 * pl.col("n") >= pl.col("n0") + pl.col("n1"))
    apart = pl.col("l1") / pl.col("n1") - pl.col("l0") / pl.col("n0")
    found = days.select(pl.when(paired).then(pl.col("d") / pl.col("n")).otherwise(apart)).to_series().to_numpy()
    return found[np.isfinite(found)]


def _loss(contract: Contract, release: Release, seen: Seen) -> Criterion:
    """A canary must be shown to be no worse than the margin, an A/B challenger to be better."""
    by_day = differences(mature(contract, seen.days))
    mean, low, high = mean_sequence(by_day, _ALPHA)
    harm = mean_sequence(by_day, _ALPHA_LOSS)[1] > 0
    bound = 0.0 if release.mode == "ab" else contract.gate.margin
    if len(by_day) < contract.judge.min_days:
        why = f"outcomes of {len(by_day)} days, {contract.judge.min_days} are needed"
        return Criterion("loss", "wait", len(by_day), _finite(mean), None, None, bound, why)
    why = f"the loss changes by {mean:+.4f} [{low:+.4f}, {high:+.4f}] over {len(by_day)} days, against {bound:g}"
    decision: Decision = "abort" if harm else "forward" if high < bound else "wait"
    return Criterion("loss", decision, len(by_day), mean, low, high, bound, why)


def _slices(contract: Contract, seen: Seen) -> Iterator[Criterion]:
    """Slices with enough rows and days: harm beyond their margin, the chance of a false alarm shared out among them."""
    days = set(mature(contract, seen.days)["day"])
    found = []
    for (name, level), part in seen.slices.filter(pl.col("n") > 0).group_by("slice", "level", maintain_order=True):
        part = part.filter(pl.col("day").is_in(days))
        if part["n"].sum() >= contract.gate.min_slice_rows and part.height >= contract.gate.min_slice_days:
            found.append((f"{name}={level}", part.select(pl.col("d") / pl.col("n")).to_series().to_numpy()))
    for name, by_day in found:
        mean, low, high = mean_sequence(by_day, _ALPHA_SLICES / len(found))
        bound = contract.gate.slice_margin
        why = f"where {name} the loss changes by {mean:+.4f} [{low:+.4f}, {high:+.4f}] over {len(by_day)} days, against {bound:g}"
        yield Criterion(name, "abort" if low > bound else "forward", len(by_day), mean, low, high, bound, why)


def _split(release: Release, seen: Seen) -> Criterion | None:
    """Did the arms get the entities that they were to get? If not, something that we do not see decides who is counted."""
    if release.mode == "shadow" or release.segment or not release.weight or release.weight >= 1:
        return None
    counts = {int(arm): int(number) for epoch, arm, number in seen.entities.iter_rows() if epoch == release.epoch}
    exposed, total = counts.get(1, 0), sum(counts.values())
    off = log_e_split([total - exposed, exposed], [1 - release.weight, release.weight]) >= math.log(1 / _ALPHA_SPLIT)
    low, high = _interval(exposed, total)
    why = f"{exposed} of {total} entities had the challenger, at a weight of {release.weight:g}{': they were not split so' if off else ''}"
    return Criterion("split", "wait" if off else "forward", total, exposed / max(total, 1), low, high, release.weight, why)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
