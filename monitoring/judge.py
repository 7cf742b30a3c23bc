"""Champion against challenger: abort, advance, or inconclusive; missing or broken data never advances a rollout.

Faults and slowness are judged row by row, the shape of the scores at once and only for gross faults, the loss on outcomes
by days, since the rows of one day share their weather, prices or campaigns. Every bound is valid under any number of
looks; the checks that may abort share the chance of a false alarm.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, time, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
from polars.selectors import by_name, numeric
from scipy import stats

from mlops import rollout
from mlops.contract import Contract
from mlops.releases import Release
from mlops.verdict import Check, Outcome, Verdict, check
from monitoring.sequential import log_e_rate, log_e_split, mean_sequence, upper_bound
from monitoring.sums import Sums

_ALPHA, _ALPHA_LAST = 0.025, 0.025  # of a promotion: at any look, and at the last one
_ALPHA_FAULTS, _ALPHA_LOSS, _ALPHA_SLICES, _ALPHA_SPLIT = 0.01, 0.02, 0.01, 0.001
_SHAPE_ROWS, _SHAPE_Z = 200, 4.0
_DESIGN_EFFECT = 10.0  # of rows that are correlated
_LATELY_DAYS = 2
_MAX_CALLERS = 100  # that are left out in turn
_ORDER = ("fail", "inconclusive", "pass")
_ADDED = ["attempts", "timed", "slow", "faults", "n", "x", "y", "xx", "yy", "xy"]
_MIN_KNOWN = 0.5  # of a day's rows: a day without outcomes does not count
MIN_DAY = 0.2  # of the usual rows: a day that has just begun is not the latest
_OF_EITHER = pl.max_horizontal(
    "n", pl.col("n0") + pl.col("n1")
)  # rows with an outcome: scored by both, or by its own arm


def judge(contract: Contract, release: Release, sums: Sums) -> Verdict:
    """`contract` is the champion's; `release` the record in force."""
    rules, views = contract.judge, list(_views(sums))
    of_each = [list(_checks(contract, release, view, without, len(views))) for view, without in views]
    checks, every = _worst(of_each), {each.name: each for each in of_each[0]}
    loss, split = next(each for each in checks if each.name == "loss"), _split(release, sums)
    checks += [split] if split else []
    rows_scored = int(sums.revisions["n"].sum())
    if harm := [each.why for each in checks if each.failed]:
        return Verdict("abort", harm, checks, [], rows_scored)
    if release.automatic and loss.outcome != "pass" and (every["loss"].n or 0) >= rules.last_days:
        late = f"{rules.last_days} days did not show that it does no harm: {loss.why}"  # a newer model may
        return Verdict("abort", [late], checks, [], rows_scored)
    missing = []
    if sums.unreadable:
        missing.append(f"{sums.unreadable} files of the log cannot be read")
    here = pl.col("n").filter(pl.col("revision") == release.revision).sum()
    scored = min(int(view.revisions.select(here).item()) for view, _ in views)
    if scored < rules.min_rows:
        missing.append(f"{scored} of {rules.min_rows} rows scored by both at this weight")
    if not all(math.isfinite(value) for value in _moments(sums.revisions).values()):
        missing.append("the log has scores that are not finite")
    if (rollout.next_weight(release, rules) or 1.0) >= rules.outcomes_from and loss.outcome != "pass":
        missing.append(loss.why)
    if split and split.outcome != "pass":
        missing.append(split.why)
    reasons = missing or [f"no evidence of harm; {loss.why}"]
    return Verdict("inconclusive" if missing else "advance", reasons, checks, [], rows_scored)


def _views(sums: Sums) -> Iterator[tuple[Sums, str]]:
    """All rows, and those without one caller: none of them, unless it sends most of the rows, decides alone. Words for the
    caller that is left out."""
    yield sums, ""
    callers = sums.revisions.group_by("caller").agg(pl.col("rows").sum()).sort("rows", "caller", descending=True)
    for caller, rows in callers.head(_MAX_CALLERS).iter_rows():
        if callers.height > 1 and 2 * rows <= callers["rows"].sum():
            others = ~pl.col("caller").eq_missing(pl.lit(caller))
            parts = {name: getattr(sums, name).filter(others) for name in ("revisions", "days", "slices")}
            yield replace(sums, **parts), f" (without API key {caller})"


def _worst(of_each: list[list[Check]]) -> list[Check]:
    """One check a name: of those that fail the first, or else of those that are inconclusive."""
    found: dict[str, Check] = {}
    for each in itertools.chain.from_iterable(of_each):
        if each.name not in found or _ORDER.index(each.outcome) < _ORDER.index(found[each.name].outcome):
            found[each.name] = each
    return list(found.values())


def _checks(contract: Contract, release: Release, sums: Sums, without: str, views: int) -> Iterator[Check]:
    """Of one view; all `views` share the chance of a false alarm."""
    start = _within_days(sums.revisions, "day")
    yield from _rates(contract, start.sum(), "since the start" + without, "since the start", 4 * views)
    yield from _shape(contract, start.sum(), "since the start" + without, "since the start")
    # A good past must not hide a recent fault. Every day was the latest once: callers choose their rows' day, and made-up
    # ones in the future would stand for what happens now. So arrival counts as well as the event, and each day of both.
    here = sums.revisions.filter(pl.col("revision") == release.revision)
    clocks = [_lately(_within_days(here, by)) for by in ("day", "arrived")]
    tests = 4 * views * max(sum(each.height for each in clocks), 1)
    lately: list[list[Check]] = []
    for windows in clocks:
        for row in _suspicious(windows):
            window, when = windows[row], f"lately{without}"
            lately.append([*_rates(contract, window, when, "lately", tests), *_shape(contract, window, when, "lately")])
    yield from _worst(lately)
    yield replace(loss := _loss(contract, release, sums, views), why=loss.why + without)
    for each in _slices(contract, sums, views):
        yield replace(each, why=each.why + without)


def _within_days(revisions: pl.DataFrame, by: str) -> pl.DataFrame:
    """Sums by one of the two days; xx, yy and xy about that day's means: a whole day that is scored higher or lower is no
    matter of shape."""
    event = revisions.group_by(by, *(["day"] if by != "day" else [])).agg(pl.col(_ADDED).sum())
    n = pl.max_horizontal("n", 1)
    centred = [(pl.col(a + b) - pl.col(a) * pl.col(b) / n).alias(a + b) for a, b in ("xx", "yy", "xy")]
    return (
        event.with_columns(centred)
        .group_by(by)
        .agg(pl.col(_ADDED).sum())
        .sort(by)
        .rename({by: "window"})
        .drop_nulls("window")
    )


def _lately(days: pl.DataFrame) -> pl.DataFrame:
    """The sums of each day and the one before."""
    windows = [days.with_columns(pl.col("window") + timedelta(days=shift)) for shift in range(_LATELY_DAYS)]
    summed = pl.concat(windows).group_by("window").agg(pl.col(_ADDED).sum())
    return summed.join(days.select("window"), on="window", how="semi").sort("window")


def _suspicious(windows: pl.DataFrame) -> list[int]:
    """Those that may fail, the newest first."""
    some = (pl.col("faults") + pl.col("slow") > 0) | (pl.col("n") >= _SHAPE_ROWS)
    rows = windows.with_row_index("row").filter(some)["row"].to_list()
    return sorted({*rows, *range(windows.height)[-1:]}, reverse=True)


def _rates(contract: Contract, sums: pl.DataFrame, when: str, name: str, tests: int) -> Iterator[Check]:
    """`tests` share the chance of a false alarm."""
    rules = contract.judge
    for kind, among, bound, word in (
        ("faults", "attempts", rules.max_fault_rate, "failed"),
        ("slow", "timed", rules.max_slow_rate, "took longer than the budget"),
    ):
        events, attempts = int(sums[kind].sum()), int(sums[among].sum())
        harm = log_e_rate(events, attempts, bound) >= math.log(tests / _ALPHA_FAULTS)
        low, high = _interval(events, attempts)
        why = f"{events} of {attempts} requests {word} {when}, against {bound:.2%}"
        yield check(f"{kind} {name}", not harm, events / max(attempts, 1), bound, why, n=attempts, low=low, high=high)


def _interval(events: int, attempts: int) -> tuple[float, float]:
    """Clopper and Pearson's, for display: the e-process decides."""
    if attempts == 0:
        return 0.0, 1.0
    low = stats.beta.ppf(0.025, events, attempts - events + 1)
    high = stats.beta.ppf(0.975, events + 1, attempts - events)
    return float(np.nan_to_num(low, nan=0.0)), float(np.nan_to_num(high, nan=1.0))


def _moments(revisions: pl.DataFrame) -> dict[str, float]:
    return {name: float(revisions[name].sum()) for name in ("n", "x", "y", "xx", "yy", "xy")}


def _shape(contract: Contract, sums: pl.DataFrame, when: str, name: str) -> Iterator[Check]:
    """Gross faults of the scores, visible in so few rows that no outcome is needed: constant, inverted, shifted."""
    rules, moments = contract.judge, _moments(sums)
    n = moments["n"]
    if n < _SHAPE_ROWS or not all(map(math.isfinite, moments.values())):
        return
    var_x, var_y = max(moments["xx"] / n, 0.0), max(moments["yy"] / n, 0.0)
    effective, varies = n / _DESIGN_EFFECT, var_x > 1e-9
    spread = math.sqrt(var_y / var_x) if var_x > 0 else 1.0
    widest = spread * math.exp(_SHAPE_Z / math.sqrt(2 * effective))
    why = f"its scores vary {spread:.2f} times as much as the champion's {when}, against {rules.min_spread:g}"
    constant = varies and widest < rules.min_spread
    yield check(f"spread {name}", not constant, spread, rules.min_spread, why, n=int(n), high=widest)
    if varies and var_y > 1e-9:
        correlation = moments["xy"] / n / math.sqrt(var_x) / math.sqrt(var_y)
        z = math.atanh(max(-0.999999, min(0.999999, correlation)))
        half = _SHAPE_Z / math.sqrt(max(effective - 3, 1))
        low, high, bound = math.tanh(z - half), math.tanh(z + half), rules.min_correlation
        why = f"its scores correlate {correlation:.2f} with the champion's {when}, against {bound:g}"
        yield check(f"correlation {name}", high >= bound, correlation, bound, why, n=int(n), low=low, high=high)
    binary = contract.task == "binary"
    unit = 1.0 if binary else math.sqrt(var_x) or 1.0
    shift, half = (moments["y"] - moments["x"]) / n / unit, _SHAPE_Z * math.sqrt((var_x + var_y) / effective) / unit
    bound, units = rules.max_shift, "logits" if binary else "standard deviations"
    why = f"its mean score differs by {shift:+.2f} {units} {when}, against {bound:g}"
    low, high = shift - half, shift + half
    yield check(f"shift {name}", abs(shift) - half <= bound, shift, bound, why, n=int(n), low=low, high=high)


def mature(contract: Contract, days: pl.DataFrame, known: pl.Expr = _OF_EITHER, by_rows: bool = False) -> pl.DataFrame:
    """The days that count, of all callers: over for long enough, with as many rows as usual and enough outcomes (`known` of
    them). The clock is the log's own, so that a replay of a month in an hour is judged as the month was; a day of a few
    made-up rows neither moves it nor counts as one, unless days are weighed `by_rows`."""
    days = days.group_by("day").agg((numeric() - by_name("last")).sum(), pl.col("last").max()).sort("day")
    usual = days.filter(pl.col("rows") >= MIN_DAY * usual_size(days["rows"].to_numpy()))
    days = days if by_rows else usual
    if days.height == 0:
        return days
    latest = float(usual["last"].max() or 0)  # ty: ignore[invalid-argument-type]
    zone = ZoneInfo(contract.zone)
    ends = [datetime.combine(day + timedelta(days=1), time(), zone).timestamp() for day in days["day"]]
    over = pl.Series(ends) + 3600 * contract.judge.maturity_hours <= latest
    return days.filter(over & (known >= _MIN_KNOWN * pl.col("rows")))


def usual_size(rows: np.ndarray) -> float:
    """Rows of the day in which the median row lies, of shape (days,): many days with a row each do not count."""
    rows = np.sort(np.asarray(rows, float))
    return float(rows[np.searchsorted(rows.cumsum(), rows.sum() / 2)]) if len(rows) else 0.0


def differences(days: pl.DataFrame) -> np.ndarray:
    """The challenger's loss less the champion's by day, shape (days,): of rows that both scored, or of the two arms' rows
    on days with fewer of the former."""
    paired = (pl.col("n") > 0) & (2 * pl.col("n") >= pl.col("n0") + pl.col("n1"))
    apart = pl.col("l1") / pl.col("n1") - pl.col("l0") / pl.col("n0")
    by_day = days.select(pl.when(paired).then(pl.col("d") / pl.col("n")).otherwise(apart)).to_series().to_numpy()
    return by_day[np.isfinite(by_day)]


def _loss(contract: Contract, release: Release, sums: Sums, views: int) -> Check:
    """A canary must be shown to be no worse than the margin, an A/B challenger to be better."""
    by_day = differences(mature(contract, sums.days))
    n, (mean, low, high) = len(by_day), mean_sequence(by_day, _ALPHA)
    bound = 0.0 if release.mode == "ab" else contract.gate.margin
    if n < contract.judge.min_days:
        why = f"outcomes of {n} days, {contract.judge.min_days} are needed"
        return Check("loss", "inconclusive", mean if math.isfinite(mean) else None, bound, why, n)
    why = f"the loss changes by {mean:+.4f} [{low:+.4f}, {high:+.4f}] over {n} days, against {bound:g}"
    harm, last = mean_sequence(by_day, _ALPHA_LOSS / views)[1] > 0, contract.judge.last_days
    # A valid interval for every look is wide: an honest model may stay within it for months. One look has a narrower one.
    at_most = upper_bound(by_day[:last], _ALPHA_LAST) if n >= last and release.mode != "ab" else math.inf
    if high >= bound > at_most:
        why = f"{why}; the first {last} days alone show at most {at_most:+.4f}"
    outcome: Outcome = "fail" if harm else "pass" if min(high, at_most) < bound else "inconclusive"
    return Check("loss", outcome, mean, bound, why, n, low, high)


def _slices(contract: Contract, sums: Sums, views: int) -> Iterator[Check]:
    """Slices with enough rows and days: harm beyond their margin; they share the chance of a false alarm."""
    gate, found = contract.gate, []
    paired = sums.slices.filter(pl.col("n") > 0).join(mature(contract, sums.days).select("day"), on="day", how="semi")
    by_day = paired.group_by("slice", "level", "day").agg(pl.col("n", "d").sum()).sort("slice", "level", "day")
    for (name, level), part in by_day.group_by("slice", "level", maintain_order=True):
        if part["n"].sum() >= gate.min_slice_rows and part.height >= gate.min_slice_days:
            found.append((f"{name}={level}", part.select(pl.col("d") / pl.col("n")).to_series().to_numpy()))
    for name, values in found:
        mean, low, high = mean_sequence(values, _ALPHA_SLICES / len(found) / views)
        bound, n = gate.slice_margin, len(values)
        why = f"for {name} the loss changes by {mean:+.4f} [{low:+.4f}, {high:+.4f}] over {n} days, against {bound:g}"
        yield check(name, low <= bound, mean, bound, why, n=n, low=low, high=high)


def _split(release: Release, sums: Sums) -> Check | None:
    """Sample ratio mismatch: if the arms did not get their shares of the entities, something unseen decides who is
    counted."""
    if release.mode == "shadow" or release.cohort or not release.weight or release.weight >= 1:
        return None
    counts = {int(arm): int(n) for revision, arm, n in sums.entities.iter_rows() if revision == release.revision}
    exposed, total, weight = counts.get(1, 0), sum(counts.values()), release.weight
    off = log_e_split([total - exposed, exposed], [1 - weight, weight]) >= math.log(1 / _ALPHA_SPLIT)
    low, high = _interval(exposed, total)
    why = f"{exposed} of {total} entities had the challenger, its weight is {weight:g}{': sample ratio mismatch' * off}"
    outcome: Outcome = "inconclusive" if off else "pass"
    return Check("split", outcome, exposed / max(total, 1), weight, why, total, low, high)
