from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, timedelta
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from mlops import profile
from mlops.contract import Contract, Window
from mlops.errors import UserError
from monitoring import drift
from monitoring.daily import Counts, Days, logged_bins
from tests.synthetic import contract_yaml, frame
from training import data
from training import profile as training_profile

TRAINED, LOGGED, WINDOW = 140, 60, 14
ROWS = frame(TRAINED + LOGGED, rows_a_day=60)
on = pl.col("at").dt.date()
FIRST = date(2024, 1, 1) + timedelta(TRAINED)
LAST = FIRST + timedelta(LOGGED - 1)  # not over yet: the window ends before it
STARTS = LAST - timedelta(WINDOW)
Change = Callable[[pl.DataFrame], pl.DataFrame]


@dataclass
class Log:
    """Counts of the training and of what was logged since."""

    contract: Contract = field(default_factory=lambda: Contract.model_validate(contract_yaml()))
    rows: pl.DataFrame = field(default_factory=lambda: ROWS.filter(on >= FIRST))
    trained: pl.DataFrame = field(default_factory=lambda: ROWS.filter(on < FIRST))

    def __post_init__(self) -> None:
        scores = np.random.default_rng(0).random(self.trained.height)
        self.profile = training_profile.profile(self.contract, data.canonical(self.trained), scores)
        self.bins = logged_bins(self.contract, self.profile | {"watched": self.watched})

    @property
    def watched(self) -> list[str]:
        return [name for name, feature in self.contract.features.items() if feature.log != "hash"]

    def change(self, change: Change, since: date = STARTS, before: date = LAST) -> Log:
        inside = (on >= since) & (on < before)
        self.rows = pl.concat([self.rows.filter(~inside), change(self.rows.filter(inside))])
        return self

    def counts(self) -> Counts:
        random = np.random.default_rng(1)
        found = {}
        for (day,), rows in sorted(self.rows.group_by(on)):
            columns = {name: values(rows[name]) for name in self.watched} | {"score": random.random(rows.height)}
            found[day] = {name: profile.count(self.bins[name], column) for name, column in columns.items()}
        return found

    def analyse(self, window: Window | None = None) -> drift.Analysis:
        daily: Any = SimpleNamespace(contract=self.contract, profile=self.profile, bins=self.bins)
        return drift.analyse(daily, Days(self.counts(), pl.DataFrame(), pl.DataFrame()), window)


def values(column: pl.Series) -> Any:
    return column.to_list() if column.dtype == pl.String else column.cast(pl.Float64).to_numpy()


def share(column: str, of: float, to: Any) -> Change:
    hit = pl.int_range(pl.len()) % 100 < of * 100
    return lambda rows: rows.with_columns(pl.when(hit).then(to).otherwise(column).alias(column))


def names(found: drift.Analysis) -> set[str]:
    return {shift.name for shift in found.alarms}


def shift_of(found: drift.Analysis, name: str) -> drift.Shift:
    (shift,) = (shift for shift in found.shifts if shift.name == name)
    return shift


def test_rows_as_they_were_in_training_are_quiet() -> None:
    found = Log().analyse()
    assert (found.decision, found.why) == ("quiet", "no alarm")
    assert (found.days[0], found.days[-1], len(found.days)) == (STARTS, LAST - timedelta(1), WINDOW)
    assert (found.rows, found.reference, found.untestable) == (WINDOW * 60, f"{TRAINED} days of training", [])
    assert {shift.name for shift in found.shifts} == {
        "size", "size:missing", "heat", "heat:missing", "color", "color:missing", "color:unknown", "region", "region:missing",
        "region:unknown", "member", "member:missing", "score",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("planted", "alarms"),
    [
        (lambda rows: rows.with_columns(pl.col("size") + 0.7), {"size"}),
        (lambda rows: rows.with_columns(pl.col("size") * 2), {"size"}),
        (lambda rows: rows.with_columns(color=pl.col("color").replace("red", "grey")), {"color"}),
        (lambda rows: rows.with_columns(member=pl.lit(True)), {"member"}),
        (share("size", 0.1, None), {"size:missing", "size"}),
        (share("member", 0.08, None), {"member:missing", "member"}),
        (share("color", 0.08, None), {"color:missing", "color"}),
        (share("color", 0.08, pl.lit("violet")), {"color:unknown", "color"}),
        (share("region", 0.06, pl.lit("east")), {"region:unknown", "region"}),
        (share("heat", 0.3, None), {"heat:missing"}),
    ],
    ids=["mean", "spread", "recoded", "boolean", *(f"missing {x}" for x in ("number", "boolean", "category")),
         "new", "rejected", "missing and seasonal"],
)  # fmt: skip
def test_each_kind_of_drift_alarms_where_it_is_planted(planted: Change, alarms: set[str]) -> None:
    found = Log().change(planted).analyse()
    assert names(found) == alarms
    assert found.decision == "drift"
    assert all(each.partition(":")[0] in found.why for each in alarms)


def test_a_seasonal_distribution_and_the_score_are_shown_and_never_alarm() -> None:
    found = Log().change(lambda rows: rows.with_columns(pl.col("heat") + 5)).analyse()
    heat = shift_of(found, "heat")
    assert (found.decision, heat.tier, heat.alarm) == ("quiet", "season", False)
    assert heat.effect > 10 * heat.bound
    assert heat.p < 0.001
    assert shift_of(found, "score").tier == "score"


def test_missing_values_of_a_seasonal_feature_have_a_wider_bound() -> None:
    """No wind has no direction."""
    found = Log().change(share("heat", 0.08, None)).change(share("size", 0.08, None)).analyse()
    assert 0.02 < shift_of(found, "heat:missing").effect < 0.1
    assert names(found) == {"size:missing", "size"}


def test_what_differs_as_much_from_day_to_day_is_no_drift() -> None:
    """Rows of a day share a size: two weeks of few such days differ from all others, and so does any other two weeks."""
    random = np.random.default_rng(3)
    level = {date(2024, 1, 1) + timedelta(day): float(random.normal(scale=3)) for day in range(TRAINED + LOGGED)}
    shared = pl.col("size") * 0.2 + on.replace_strict(level, return_dtype=pl.Float64)
    log = Log(
        rows=ROWS.filter(on >= FIRST).with_columns(size=shared),
        trained=ROWS.filter(on < FIRST).with_columns(size=shared),
    )
    size = shift_of(log.analyse(), "size")
    assert size.effect > 2 * size.bound
    assert not size.alarm


@pytest.mark.parametrize(("trained", "logged"), [(900, 18), (18, 900), (300, 300)])
def test_rows_a_day_may_be_others_than_in_training(trained: int, logged: int) -> None:
    """Chance is what it says, whatever the volumes: of twelve features that only vary from day to day few are beyond 5 %, and
    a shift of one is found."""
    contract = Contract.model_validate({
        "model": "m", "task": "binary", "target": "y", "time": {"column": "at"},
        "features": {f"x{i}": {"type": "number"} for i in range(12)},
    })  # fmt: skip
    bins, chance, seen = {name: {"edges": [-1.3, -0.5, 0.0, 0.5, 1.3]} for name in contract.features}, [], 0
    for seed in range(5):
        random = np.random.default_rng(seed)

        def day(rows: int, shift: float, random: np.random.Generator = random) -> dict[str, np.ndarray]:
            means = {name: 0.3 * random.normal() + shift * (name == "x0") for name in contract.features}
            return {name: profile.count(bins[name], random.normal(mean, size=rows)) for name, mean in means.items()}

        known = {f"{FIRST - timedelta(number)}": day(trained, 0.0) for number in range(1, 100)}
        log = {FIRST + timedelta(number): day(logged, 0.8) for number in range(WINDOW + 1)}
        daily: Any = SimpleNamespace(contract=contract, profile={"days": known}, bins=bins)
        found = drift.analyse(daily, Days(log, pl.DataFrame(), pl.DataFrame()))
        chance += [shift.p for shift in found.shifts if shift.aspect == "distribution" and shift.feature != "x0"]
        seen += "x0" in names(found)
    assert seen == 5
    assert np.mean(np.array(chance) <= 0.05) < 0.15
    assert np.mean(np.array(chance) >= 0.95) < 0.15


def test_other_weekdays_are_no_drift() -> None:
    """A log of working days alone, where size and color are others at weekends."""
    weekend = on.dt.weekday() > 5
    weekly = ROWS.with_columns(
        size=pl.col("size") + 5 * weekend, color=pl.when(weekend).then(pl.lit("blue")).otherwise("color")
    )
    log = Log(rows=weekly.filter(on >= FIRST, ~weekend), trained=weekly.filter(on < FIRST))
    found = log.analyse()
    assert len(found.days) == 10
    assert found.decision == "quiet"
    assert shift_of(found, "size").effect < 0.5 * shift_of(found, "size").bound
    log.change(lambda rows: rows.with_columns(pl.col("size") + 0.7))
    assert names(log.analyse()) == {"size"}


def test_an_old_shift_still_alarms_and_is_not_recent() -> None:
    def higher(rows: pl.DataFrame) -> pl.DataFrame:
        return rows.with_columns(pl.col("size") + 1)

    old, new = (
        shift_of(Log().change(higher, since=FIRST).analyse(), "size"),
        shift_of(Log().change(higher).analyse(), "size"),
    )
    assert (old.alarm, new.alarm) == (True, True)
    assert old.recent < 0.05 < 0.5 < new.recent
    assert len(new.by_day) == WINDOW
    assert min(new.by_day) > new.bound


def test_a_window_that_is_asked_for_is_the_one_that_is_looked_at() -> None:
    log = Log().change(
        lambda rows: rows.with_columns(pl.col("size") + 1), since=FIRST + timedelta(20), before=FIRST + timedelta(34)
    )
    assert names(log.analyse()) == set()
    asked = log.analyse(Window(start=FIRST + timedelta(20), end=FIRST + timedelta(34)))
    assert (asked.days[0], asked.days[-1]) == (FIRST + timedelta(20), FIRST + timedelta(33))
    assert names(asked) == {"size"}
    with pytest.raises(UserError, match="two dates"):
        log.analyse(Window(start=0.0, end=0.5))


def test_a_day_that_has_just_begun_does_not_end_the_window() -> None:
    begun = ROWS.filter(on == LAST).head(5).with_columns(pl.col("at") + pl.duration(days=1))
    log = Log()
    log.rows = pl.concat([log.rows, begun])
    assert log.analyse().days[-1] == LAST - timedelta(1)


def test_too_few_days_are_inconclusive_and_said() -> None:
    log = Log(rows=ROWS.filter(on >= LAST - timedelta(4))).change(lambda rows: rows.with_columns(pl.col("size") + 1))
    found = log.analyse()
    assert (found.decision, found.alarms, len(found.days)) == ("inconclusive", [], 4)
    assert "4 days" in found.why
    assert "5 and 14 are needed" in found.why
    few = Log(trained=ROWS.filter(on >= FIRST - timedelta(13), on < FIRST)).analyse()
    assert few.decision == "inconclusive"
    assert "13 days of training" in few.why
    assert Log(rows=ROWS.clear()).analyse().decision == "inconclusive"


def test_a_feature_of_too_few_rows_is_untestable_and_the_others_are_not() -> None:
    thin = ROWS.filter(on >= FIRST).filter(pl.int_range(pl.len()).over(on) < 8)  # 112 rows in two weeks
    found = Log(rows=thin).change(lambda rows: rows.with_columns(pl.col("size") + 3, member=pl.lit(True))).analyse()
    assert "size" in found.untestable
    assert names(found) == {"member"}


@pytest.mark.parametrize("side", ["trained", "rows"])
def test_rows_that_are_too_few_for_any_feature_are_inconclusive(side: str) -> None:
    sides = {"trained": ROWS.filter(on < FIRST), "rows": ROWS.filter(on >= FIRST)}
    sides[side] = sides[side].filter(pl.int_range(pl.len()).over(on) == 0).tail(20)
    found = Log(**sides).change(lambda rows: rows.with_columns(member=pl.lit(True), color=pl.lit("red"))).analyse()
    assert (found.decision, found.alarms) == ("inconclusive", [])
    assert "20 for every bin" in found.why


def test_without_time_the_log_before_is_compared_with() -> None:
    without = contract_yaml(time=None, outcome_at=None)
    without["features"]["heat"].pop("known_at")
    contract = Contract.model_validate(without)
    quiet = Log(contract).analyse()
    assert (quiet.decision, quiet.reference) == ("quiet", f"{LOGGED - WINDOW - 1} days of the log before")
    assert names(Log(contract).change(lambda rows: rows.with_columns(pl.col("size") + 1)).analyse()) == {"size"}
    short = Log(contract, rows=ROWS.filter(on > LAST - timedelta(20))).analyse()
    assert short.decision == "inconclusive"
    assert "5 days of the log before" in short.why
