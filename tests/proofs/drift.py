"""Drift is seen where it is planted and quiet weeks stay quiet, on the real days of the repository's own model: shifts of
known sizes, resampled rows, permuted days, every two weeks of the year; and what other detectors say of the same windows.

Sizes are Cohen's: 0.2, 0.5 and 0.8, as d for a mean (standard deviations) and as h for the share of rows that are missing,
new (1, 6 and 15 of 100) or recoded (of the commonest categories, a third of all rows, into the next one: 9, 21 and 30 of 100).
The spread is the standard deviation times 1.25, 1.5 and 2."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from mlops import profile
from mlops.contract import Contract, Window
from mlops.environment import only_model
from monitoring import drift
from monitoring.daily import Counts, Days, logged_bins
from training import data, estimator
from training import profile as training_profile
from training.definition import load_definition

WINDOWS, QUIET, RIVALS_QUIET, RIVALS_PLANTED = 200, 500, 50, 10
SEEN, LIMIT = {"large": 0.95, "medium": 0.8}, 0.07
SIZES = {"small": 0.2, "medium": 0.5, "large": 0.8}
SPREADS = {"small": 1.25, "medium": 1.5, "large": 2.0}
KINDS = ("mean", "spread", "recoded", "missing", "new")
RESAMPLED, PERMUTED, YEAR = "rows resampled", "days permuted", "every window of the year"
_INTERPRETER = "MLOPS_RIVALS_PYTHON"


@dataclass(frozen=True)
class Problem:
    """`rows`: of all days, with the champion's `score` and the `day`, trained first."""

    contract: Contract
    profile: dict[str, Any]
    rows: pl.DataFrame
    trained: list[date]
    later: list[date]

    @cached_property
    def bins(self) -> dict[str, Any]:
        return logged_bins(self.contract, self.profile)

    @cached_property
    def counts(self) -> Counts:
        return counted(self.rows, self.bins)

    def of(self, days: list[date]) -> Counts:
        return {day: self.counts[day] for day in days}

    @cached_property
    def training(self) -> pl.DataFrame:
        return self.rows.filter(pl.col("day").is_in(self.trained))

    @cached_property
    def positions(self) -> dict[str, np.ndarray]:
        """The bin of each training row."""
        return {name: profile.positions(bins, values(self.training[name])) for name, bins in self.bins.items()}

    def analyse(self, reference: list[date], log: Counts, start: date, end: date) -> drift.Analysis:
        trained = {f"{day}": found for day, found in self.of(reference).items()}
        daily: Any = SimpleNamespace(contract=self.contract, profile={"days": trained}, bins=self.bins)
        nothing = pl.DataFrame()
        return drift.analyse(daily, Days(log, nothing, nothing), Window(start=start, end=end))


def values(column: pl.Series) -> Any:
    return column.to_list() if column.dtype == pl.String else column.cast(pl.Float64).to_numpy()


def counted(rows: pl.DataFrame, bins: dict[str, Any]) -> Counts:
    """Rows by day, feature and bin, of the features that are columns."""
    days = rows["day"].unique().sort()
    place = days.search_sorted(rows["day"]).to_numpy()
    found: Counts = {day: {} for day in days}
    for name in (name for name in bins if name in rows.columns):
        each = bins[name]
        width = len(profile.names(each))
        table = np.bincount(place * width + profile.positions(each, values(rows[name])), minlength=len(days) * width)
        for day, row in zip(days, table.reshape(-1, width), strict=True):
            found[day][name] = row
    return found


def problem() -> Problem:
    made = load_definition(only_model())
    contract, rows = made.contract, data.canonical(made.load())
    train = data.cut(rows, contract, contract.windows.train)
    fitted = estimator.fit(made.pipeline(contract, made.parameters, 0), train.frame, contract)
    known = training_profile.profile(contract, train.frame, estimator.score(fitted, train.frame, contract))
    day = pl.Series("day", data.days(rows, contract)).cast(pl.Int32).cast(pl.Date)
    score = pl.Series("score", estimator.score(fitted, rows, contract)).cast(pl.Float64)
    rows = rows.select(*contract.features).with_columns(day, score)
    days = day.unique().sort().to_list()
    end = train.window.end
    return Problem(contract, known, rows, [d for d in days if d < end], [d for d in days if d >= end])


@dataclass(frozen=True)
class Shift:
    kind: str
    size: str
    feature: str

    def planted(self, training: pl.DataFrame) -> pl.DataFrame:
        """The feature of all training rows, shifted, and their days."""
        column, by = pl.col(self.feature), SIZES[self.size]
        hit = pl.lit(pl.Series(np.random.default_rng(0).random(training.height))) < np.sin(by / 2) ** 2
        shifted = {
            "mean": column + by * column.std(),
            "spread": column.mean() + SPREADS[self.size] * (column - column.mean()),
            "recoded": _recoded(training[self.feature], by),
            "missing": pl.when(~hit).then(column),
            "new": pl.when(hit).then(pl.lit("never seen")).otherwise(column),
        }
        return training.select("day", shifted[self.kind].alias(self.feature))


def _recoded(column: pl.Series, h: float) -> pl.Expr:
    levels = column.value_counts(normalize=True, name="share").sort("share", column.name, descending=[True, False])
    upto = int((levels["share"].cum_sum() < 1 / 3).sum()) + 1
    common, share = levels[column.name].head(upto), float(levels["share"].head(upto).sum())
    fallen = np.sin(np.arcsin(np.sqrt(share)) - h / 2) ** 2
    hit = pl.lit(pl.Series(np.random.default_rng(0).random(len(column)))) < (share - fallen) / share
    here = pl.col(column.name)
    return pl.when(here.is_in(common.to_list()) & hit).then(pl.lit(levels[column.name][upto])).otherwise(here)


def shifts(contract: Contract) -> Iterator[Shift]:
    """Of features of integrity, each kind for those of its type; missing values of seasonal ones too."""
    of = {"mean": ("number",), "spread": ("number",), "recoded": ("category",), "new": ("category",)}
    for kind, size in itertools.product(KINDS, SIZES):
        for name, feature in contract.features.items():
            fits = kind == "missing" or feature.type in of[kind]
            fits &= not (kind == "new" and feature.unknown == "reject")  # such a request is refused
            if fits and (feature.drift == "integrity" or kind == "missing"):
                yield Shift(kind, size, name)


def by_cell(contract: Contract, shifts: Iterable[Shift]) -> dict[tuple[str, str], list[Shift]]:
    """By kind and size."""
    found: dict[tuple[str, str], list[Shift]] = defaultdict(list)
    for shift in shifts:
        season = contract.features[shift.feature].drift == "season"
        found[f"{shift.kind} in seasonal features" if season else shift.kind, shift.size].append(shift)
    return found


_given: list[tuple[Problem, dict[Shift, Counts]]] = []


def _share(given: Problem, planted: dict[Shift, Counts]) -> None:
    _given.append((given, planted))


def _drawn(given: Problem, number: int) -> list[date]:
    """The days of a window drawn out of the training."""
    random = np.random.default_rng(number)
    return sorted(random.choice(np.array(given.trained), given.contract.drift.window_days, replace=False).tolist())


def _one_planted(shift: Shift, number: int) -> bool:
    """Is the feature in which it is planted among the alarms?"""
    given, planted = _given[0]
    days = _drawn(given, number)
    log = {day: given.counts[day] | planted[shift][day] for day in days}
    return any(each.feature == shift.feature for each in _of_days(given, log).alarms)


def _of_days(given: Problem, log: Counts) -> drift.Analysis:
    rest = [day for day in given.trained if day not in log]
    return given.analyse(rest, log, min(log), max(log) + timedelta(1))


def _one_permuted(number: int) -> list[str]:
    given, _ = _given[0]
    return [each.name for each in _of_days(given, {day: given.counts[day] for day in _drawn(given, number)}).alarms]


def _one_resampled(number: int) -> list[str]:
    given, _ = _given[0]
    drawn = resampled(given, number)
    log = {
        day: {name: np.bincount(at[rows], minlength=len(profile.names(given.bins[name]))) for name, at in given.positions.items()}
        for day, rows in drawn.items()
    }  # fmt: skip
    return [each.name for each in given.analyse(given.trained, log, min(log), max(log) + timedelta(1)).alarms]


def resampled(given: Problem, number: int) -> dict[date, np.ndarray]:
    """Places of training rows by day: as many as a day has, whatever day they are from."""
    random, days = np.random.default_rng(number), given.contract.drift.window_days
    rows = given.training.height
    return {day: random.integers(0, rows, rows // len(given.trained)) for day in given.later[:days]}


def _one_consecutive(start: date) -> tuple[list[str], list[str]]:
    """The alarms, and what lies beyond the bound of an alarm among what never alarms."""
    given, _ = _given[0]
    end = start + timedelta(given.contract.drift.window_days)
    log = {day: given.counts[day] for day in given.later if day < end}
    found = given.analyse(given.trained, log, start, end)
    beyond = [each.name for each in found.shifts if each.tier != "integrity" and each.effect > each.bound]
    return [each.name for each in found.alarms], beyond


def upper(count: int, number: int) -> float:
    """The upper end of Clopper and Pearson's two-sided 95 % interval: the stricter one."""
    return float(stats.beta.ppf(0.975, count + 1, number - count)) if count < number else 1.0


def _detected(
    given: Problem, planted: dict[Shift, Counts], cells: dict[tuple[str, str], list[Shift]], pool: ProcessPoolExecutor,
    windows: int,
) -> dict[str, Any]:  # fmt: skip
    """By cell: the share of windows in which the feature alarms, each window with the next of its features; and which of
    them alarms least."""
    found: dict[str, Any] = defaultdict(dict)
    for (kind, size), those in cells.items():
        tasks = [(those[number % len(those)], number) for number in range(windows)]
        seen = list(pool.map(_one_planted, *zip(*tasks, strict=True), chunksize=25))
        by_feature = {
            each.feature: [s for (shift, _), s in zip(tasks, seen, strict=True) if shift == each] for each in those
        }
        least = min(by_feature, key=lambda name: np.mean(by_feature[name]))
        found[kind][size] = {
            "psi": [round(of([_psi(given, planted[each], each.feature) for each in those]), 3) for of in (min, max)],
            "rate": round(float(np.mean(seen)), 3),
            "least": {least: round(float(np.mean(by_feature[least])), 3)},
        }
    return dict(found)


def _psi(given: Problem, planted: Counts, name: str) -> float:
    """Of the whole training with the shift against without."""
    before, after = (
        np.sum([found[name] for found in part.values()], axis=0) for part in (given.of(given.trained), planted)
    )
    return float(profile.psi(before / before.sum(), after))


def _alarms(found: Iterable[list[str]]) -> dict[str, Any]:
    each = list(found)
    count = sum(map(bool, each))
    features = Counter(name for names in each for name in names)
    return {
        "windows": len(each),
        "alarms": count,
        "upper_95": round(upper(count, len(each)), 4),
        "features": dict(features),
    }


@dataclass(frozen=True)
class Task:
    """A window for the others; `without`: days of the training that are not in its reference."""

    of: tuple[str, ...]
    rows: pl.DataFrame
    without: list[date]
    planted_in: str = ""


def _tasks(given: Problem, starts: list[date], cells: dict[tuple[str, str], list[Shift]]) -> Iterator[Task]:
    for start in starts[:: max(len(starts) // RIVALS_QUIET, 1)][:RIVALS_QUIET]:
        end = start + timedelta(given.contract.drift.window_days)
        yield Task((YEAR,), given.rows.filter(pl.col("day") >= start, pl.col("day") < end), [])
    for number in range(RIVALS_QUIET):
        yield Task((RESAMPLED,), given.training[np.concatenate(list(resampled(given, number).values()))], [])
    for days in (_drawn(given, number) for number in range(RIVALS_QUIET)):
        yield Task((PERMUTED,), given.training.filter(pl.col("day").is_in(days)), days)
    for (kind, size), those in cells.items():
        for number in range(RIVALS_PLANTED if kind in KINDS else 0):
            shift, days = those[number % len(those)], _drawn(given, number)
            rows = given.training.with_columns(shift.planted(given.training)[shift.feature])
            yield Task((kind, size), rows.filter(pl.col("day").is_in(days)), days, shift.feature)


def _rivals(given: Problem, tasks: list[Task], folder: Path) -> dict[str, Any]:
    """How often each says drift by its defaults: of the data, of any column, and of the one in which it is planted."""
    halves = [tasks[half::2] for half in range(2)]
    with ThreadPoolExecutor(2) as pool:
        said = list(pool.map(lambda half: _ask(given, halves[half], folder / f"{half}"), range(2)))
    answers = [
        (task, each)
        for half, one in zip(halves, said, strict=True)
        for task, each in zip(half, one["windows"], strict=True)
    ]
    found: dict[str, Any] = {"windows": {"quiet": RIVALS_QUIET, "planted": RIVALS_PLANTED}}
    for name, release in said[0]["versions"].items():
        found[name] = {"version": release}
        for of in dict.fromkeys(task.of for task in tasks):
            those = [(task, each[name]) for task, each in answers if task.of == of]
            rates = {
                "data": [each["dataset"] for _, each in those],
                "any column": [bool(each["columns"]) for _, each in those],
            }
            if those[0][0].planted_in:
                rates["the column"] = [task.planted_in in each["columns"] for task, each in those]
            found[name][", ".join(of)] = {what: round(float(np.mean(each)), 2) for what, each in rates.items()}
    return found


def _ask(given: Problem, tasks: list[Task], folder: Path) -> dict[str, Any]:
    folder.mkdir()
    features = given.contract.features
    numbers = [name for name, feature in features.items() if feature.type == "number"]
    categories = [name for name in features if name not in numbers]
    typed = [pl.col(numbers).cast(pl.Float64), pl.col(categories).cast(pl.String), pl.col("day").cast(pl.String)]
    given.training.select(typed).write_csv(folder / "rows.csv")
    windows = []
    for number, task in enumerate(tasks):
        task.rows.select(typed).write_csv(folder / f"{number}.csv")
        windows.append({"file": f"{number}.csv", "without": [f"{day}" for day in task.without]})
    (folder / "task.json").write_text(json.dumps({"numbers": numbers, "categories": categories, "windows": windows}))
    script = Path(__file__).with_name("_rivals.py")
    # -P: this folder has a module that is named as one of the standard library.
    subprocess.run([os.environ[_INTERPRETER], "-P", str(script), str(folder)], check=True, stdout=subprocess.DEVNULL)
    return json.loads((folder / "said.json").read_text())


def prove(folder: Path, windows: int = WINDOWS, quiet: int = QUIET) -> dict[str, Any]:
    given = problem()
    planted = {each: counted(each.planted(given.training), given.bins) for each in shifts(given.contract)}
    cells = by_cell(given.contract, planted)
    starts = [day for day in given.later if day + timedelta(given.contract.drift.window_days - 1) <= given.later[-1]]
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # threads of two processes would wait for one another
    spawned = get_context("spawn")  # polars' threads do not survive a fork
    with ProcessPoolExecutor(2, spawned, _share, (given, planted)) as pool:
        found: dict[str, Any] = {"detected": _detected(given, planted, cells, pool, windows)}
        found[RESAMPLED] = _alarms(pool.map(_one_resampled, range(quiet), chunksize=25))
        found[PERMUTED] = _alarms(pool.map(_one_permuted, range(quiet), chunksize=25))
        year = list(pool.map(_one_consecutive, starts, chunksize=10))
    beyond = Counter(name for _, names in year for name in names)
    found[YEAR] = _alarms(alarms for alarms, _ in year) | {"beyond a bound, no alarm": dict(beyond.most_common())}
    if _INTERPRETER in os.environ:
        found["others"] = _rivals(given, list(_tasks(given, starts, cells)), folder)
    else:
        found["others"] = f"left out: {_INTERPRETER} names no interpreter that has Evidently and Alibi Detect"
    bars = {
        f"{kind}, {size}: {least:.0%} seen": found["detected"][kind][size]["rate"] >= least
        for kind in KINDS for size, least in SEEN.items() if kind in found["detected"]
    }  # fmt: skip
    bars |= {f"{name}: {LIMIT:.0%} alarms": found[name]["upper_95"] <= LIMIT for name in (RESAMPLED, PERMUTED)}
    bars["no alarm by a seasonal distribution"] = not set(found[YEAR]["features"]) & set(beyond)
    missed = [bar for bar, holds in bars.items() if not holds]
    return found | {"holds": not missed, "reason": "; ".join(missed)}
