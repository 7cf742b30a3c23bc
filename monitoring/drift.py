"""Is live data still what the model was trained on?

Rows of a day share their weather, prices or campaigns, so textbook tests over rows fire on every quiet week. Here days
are the unit: those of the window are compared with those of the training, and chance is what the same statistic shows
when the days are dealt out anew, weekday by weekday. An alarm needs both, an effect beyond its bound and one that
chance does not explain (Benjamini and Hochberg over all that may alarm).

Two tiers: features of integrity alarm, and missing or unknown values of any feature; the distribution of features that
the contract calls seasonal, and of the score, is context.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import partial
from typing import Any

import numpy as np
from scipy import stats

from mlops import profile
from mlops.contract import Contract, Window
from mlops.errors import UserError
from monitoring.daily import Counts, Daily, Days
from monitoring.judge import MIN_DAY, usual_size

ALARM, QUIET, UNKNOWN = "drift", "quiet", "inconclusive"
_ALPHA = 0.05
_DEALS = 5000
_ROWS_A_BIN = 20  # fewer drift by chance
_MIN_DAYS, _MIN_REFERENCE = 5, 14
_RECENT_DAYS = 28
_RISING = {"missing": -1, "unknown": -2}  # their bins
Measure = Callable[[np.ndarray, np.ndarray], np.ndarray]  # of rows by bin, inside and outside the window


@dataclass(frozen=True)
class Shift:
    """One aspect (distribution, missing, unknown) of a feature: `effect` is PSI, or the rise of a share; `p` how often
    chance alone shows as much; `recent` is the effect against the weeks before the window, NaN without them; `by_day` the
    effect of each day of the window."""

    feature: str
    aspect: str
    tier: str
    effect: float
    bound: float
    p: float
    recent: float
    by_day: list[float]
    alarm: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which has no NaN."""
        return vars(self) | {"recent": None if np.isnan(self.recent) else self.recent}

    @property
    def name(self) -> str:
        return self.feature if self.aspect == "distribution" else f"{self.feature}:{self.aspect}"


@dataclass(frozen=True)
class Analysis:
    """`reference`: the days compared with, and where they are from; `untestable`: features with too few rows."""

    decision: str
    why: str
    days: list[date]
    rows: int
    reference: str
    shifts: list[Shift]
    untestable: list[str]
    unreadable: int = 0

    @property
    def alarms(self) -> list[Shift]:
        return [shift for shift in self.shifts if shift.alarm]


def analyse(daily: Daily, days: Days, window: Window | None = None) -> Analysis:
    """The window is the newest of the contract's length that is over, by the log's own clock."""
    contract, counts = daily.contract, days.counts
    chosen, before = _windows(contract, counts, window)
    trained = {date.fromisoformat(day): {name: np.array(rows) for name, rows in found.items()}
               for day, found in daily.profile.get("days", {}).items()}  # fmt: skip
    reference, origin = (trained, "training") if trained else (before, "the log before")
    rows = sum(map(_rows, chosen.values()))
    about = f"{len(reference)} days of {origin}" if reference else "no day to compare with"
    if len(chosen) < _MIN_DAYS or len(reference) < _MIN_REFERENCE:
        why = f"{len(chosen)} days, compared with {about}: {_MIN_DAYS} and {_MIN_REFERENCE} are needed"
        return Analysis(UNKNOWN, why, list(chosen), rows, about, [], [], days.unreadable)
    shifts, untestable = [], []
    dealt = _deals(list(reference), list(chosen))
    for name, bins in daily.bins.items():
        own, theirs = (np.array([each[name] for each in part.values()], float) for part in (chosen, reference))
        if min(own.sum(), theirs.sum()) < _ROWS_A_BIN * own.shape[1]:
            untestable.append(name)
            continue
        recent = np.array([each[name] for each in _last(before, _RECENT_DAYS).values()], float).reshape(
            -1, own.shape[1]
        )
        shifts += _shifts(contract, name, bins, own, theirs, recent, dealt)
    if not any(shift.tier == "integrity" for shift in shifts):
        why = f"{rows} rows, compared with {about}: of each {_ROWS_A_BIN} for every bin of a feature are needed"
        return Analysis(UNKNOWN, why, list(chosen), rows, about, shifts, untestable, days.unreadable)
    shifts = _with_alarms(shifts)
    alarms = [shift for shift in shifts if shift.alarm]
    why = "; ".join(map(describe, alarms)) or "no alarm"
    return Analysis(ALARM if alarms else QUIET, why, list(chosen), rows, about, shifts, untestable, days.unreadable)


def describe(shift: Shift) -> str:
    if shift.aspect == "distribution":
        return f"{shift.feature}: PSI {shift.effect:.2f}, against {shift.bound:g}"
    return f"{shift.feature}: {shift.effect:+.1%} {shift.aspect} values, against {shift.bound:.0%}"


def _windows(contract: Contract, counts: Counts, window: Window | None) -> tuple[Counts, Counts]:
    """The days of the window, and those before it."""
    if window is None:
        rows = {day: _rows(found) for day, found in counts.items()}
        usual = [day for day, n in rows.items() if n >= MIN_DAY * usual_size(np.array(list(rows.values())))]
        end = max(usual, default=date.min + timedelta(366))
        start = end - timedelta(contract.drift.window_days)
    elif isinstance(window.start, date) and isinstance(window.end, date):
        start, end = window.start, window.end
    else:
        raise UserError("window", str(window), "write two dates: the log has no first and last row")
    chosen = {day: found for day, found in counts.items() if start <= day < end}
    return chosen, {day: found for day, found in counts.items() if day < start}


def _rows(found: dict[str, np.ndarray]) -> int:
    return max(int(rows.sum()) for rows in found.values())


def _last(counts: Counts, days: int) -> Counts:
    return dict(list(counts.items())[-days:])


def _deals(reference: list[date], window: list[date]) -> tuple[np.ndarray, np.ndarray]:
    """How much each day counts in the window and in what it is compared with, both of shape (deals, days): first as the days
    are, then dealt out among those of one weekday. Both have the same weekdays."""
    weekdays = np.array([day.weekday() for day in (*reference, *window)])
    own = np.arange(len(weekdays)) >= len(reference)
    dealt, weights = np.zeros((_DEALS + 1, len(weekdays)), bool), np.zeros(len(weekdays))
    order = np.random.default_rng(0).random(dealt.shape)
    for weekday in np.unique(weekdays):
        (places,) = np.nonzero(weekdays == weekday)
        drawn = places[np.argsort(order[:, places], axis=1)[:, : own[places].sum()]]
        np.put_along_axis(dealt, drawn, True, axis=1)
        weights[places] = own[places].sum() / max(int((~own[places]).sum()), 1)
    dealt[0] = own
    return dealt.astype(float), ~dealt * weights


def _shifts(
    contract: Contract, name: str, bins: dict[str, Any], own: np.ndarray, theirs: np.ndarray, recent: np.ndarray,
    dealt: tuple[np.ndarray, np.ndarray],
) -> Iterator[Shift]:  # fmt: skip
    """`own`, `theirs` and `recent`: rows by day and bin."""
    limits, tier = contract.drift, contract.features[name].drift if name in contract.features else "score"
    plain, even = np.concatenate([theirs, own]), np.concatenate(_evened(name, theirs, own))
    as_they_are, as_dealt = [days[:1] @ plain for days in dealt], [days @ even for days in dealt]
    now, before, total = (days.sum(0, keepdims=True) for days in (own, recent, theirs))
    by_day = own[own.sum(1) > 0]

    def shift(aspect: str, tier: str, measure: Measure, bound: float) -> Shift:
        effect, effects = float(measure(*as_they_are)[0]), measure(*as_dealt)
        chance = float((effects >= effects[0] - 1e-12).mean())
        since = float(measure(now, before)[0]) if before.sum() else np.nan
        return Shift(name, aspect, tier, effect, bound, chance, since, measure(by_day, total).tolist())

    yield shift("distribution", tier, _psi, limits.max_psi)
    for aspect, position in _RISING.items():
        if name == "score" or (aspect == "unknown" and "levels" not in bins):
            continue
        bound = limits.max_rise_season if tier == "season" else limits.max_rise
        yield shift(aspect, "integrity", partial(_rise, position), bound)


def _psi(inside: np.ndarray, outside: np.ndarray) -> np.ndarray:
    return profile.psi(outside / outside.sum(1, keepdims=True), inside)


def _rise(position: int, inside: np.ndarray, outside: np.ndarray) -> np.ndarray:
    return inside[:, position] / inside.sum(1) - outside[:, position] / outside.sum(1)


def _evened(name: str, theirs: np.ndarray, own: np.ndarray) -> list[np.ndarray]:
    """Of the days with more rows a part drawn at random, so that a day has as many in both: days of few rows vary more, and
    dealt out among days of many they would not count."""
    random, means = np.random.default_rng(list(name.encode())), [each.sum() / len(each) for each in (theirs, own)]
    return [
        random.binomial(each.astype(int), min(means) / mean) for each, mean in zip((theirs, own), means, strict=True)
    ]


def _with_alarms(shifts: list[Shift]) -> list[Shift]:
    may = [shift for shift in shifts if shift.tier == "integrity"]
    if not may:
        return shifts
    adjusted = dict(zip([shift.name for shift in may], stats.false_discovery_control([s.p for s in may]), strict=True))
    by_chance = {shift.name: adjusted.get(shift.name, 1.0) > _ALPHA for shift in shifts}
    return [replace(shift, alarm=shift.effect > shift.bound and not by_chance[shift.name]) for shift in shifts]
