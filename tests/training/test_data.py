from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from mlops.contract import Contract, Window
from mlops.environment import Environment
from mlops.errors import UserError
from tests import synthetic
from training import data
from training.source import read
from training.validation import typed

CONTRACT = Contract.model_validate(synthetic.contract_yaml())


def timeless(**changes: Any) -> Contract:
    raw = synthetic.contract_yaml(**changes)
    raw["features"] = {
        name: {k: v for k, v in feature.items() if k != "known_at"} for name, feature in raw["features"].items()
    }
    return Contract.model_validate({k: v for k, v in raw.items() if k not in ("time", "outcome_at")})


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    return synthetic.frame(40, 25)


def test_the_fingerprint_is_of_the_rows_not_of_their_order_or_file(rows: pl.DataFrame, tmp_path: Path) -> None:
    wanted = data.fingerprint(rows)
    assert data.fingerprint(rows.sample(fraction=1.0, shuffle=True, seed=1)) == wanted
    assert data.fingerprint(rows.select(reversed(rows.columns))) == wanted
    rows.write_parquet(tmp_path / "rows.parquet")
    rows.reverse().write_csv(tmp_path / "rows.csv")
    tables = [read(str(tmp_path / f"rows.{kind}")) for kind in ("parquet", "csv")]
    prints = {data.fingerprint(typed(data.select(table, CONTRACT), CONTRACT)[0]) for table in (rows, *tables)}
    assert len(prints) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[1:],
        lambda rows: pl.concat([rows, rows[:1]]),
        lambda rows: rows.with_columns(
            size=pl.when(pl.int_range(pl.len()) == 7).then(pl.col("size") + 0.001).otherwise(pl.col("size"))
        ),
        lambda rows: rows.rename({"size": "length"}),
        lambda rows: rows.with_columns(heat=pl.col("heat").fill_null(0.0)),
    ],
    ids=["a row less", "a row twice", "a value", "a name", "a missing value"],
)
def test_another_fingerprint_for(rows: pl.DataFrame, change: Any) -> None:
    assert data.fingerprint(change(rows)) != data.fingerprint(rows)


def test_fractions_are_parts_of_the_time_column_cut_at_midnight(rows: pl.DataFrame) -> None:
    first, second = (data.cut(rows, CONTRACT, Window.parse(w)) for w in ("0..0.5", "0.5..1.0"))
    assert (str(first.window), str(second.window)) == ("2024-01-01..2024-01-21", "2024-01-21..2024-02-10")
    assert (first.frame.height, second.frame.height) == (500, 500)
    assert data.days(first.frame, CONTRACT).max() < data.days(second.frame, CONTRACT).min()
    assert data.cut(rows, CONTRACT, first.window).frame.equals(first.frame)


def test_the_day_is_that_of_the_contracts_zone(rows: pl.DataFrame) -> None:
    raw = synthetic.contract_yaml(time={"column": "at", "zone": "America/New_York"})
    there = Contract.model_validate(raw)
    early = rows.filter(pl.col("at").dt.hour() < 5)
    assert early.height > 0
    assert (data.days(early, CONTRACT) - data.days(early, there) == 1).all()
    assert data.cut(early, there, Window(start=date(2023, 12, 31), end=date(2024, 1, 1))).frame.height > 0


def test_a_date_column_will_do(rows: pl.DataFrame) -> None:
    dated = rows.with_columns(pl.col("at").dt.date())
    assert (data.days(dated, CONTRACT) == data.days(rows, CONTRACT)).all()


def test_without_time_a_row_stays_on_its_side_whatever_comes_with_it(rows: pl.DataFrame) -> None:
    contract = timeless()
    train, holdout = (data.cut(rows, contract, Window.parse(w)).frame for w in ("0..0.7", "0.7..1.0"))
    assert train.height + holdout.height == rows.height
    assert 0.6 < train.height / rows.height < 0.8
    more = pl.concat([synthetic.frame(10, 25, seed=5), rows.reverse()])
    again = data.cut(more, contract, Window.parse("0.7..1.0")).frame
    assert again.join(holdout, on=["customer", "size", "settled"], how="semi").height == holdout.height
    assert again.join(train, on=["customer", "size", "settled"], how="semi").height == 0
    blocks = data.days(holdout, contract)
    assert len(np.unique(blocks)) == 50, "blocks stand in for days within any part"


def test_without_time_the_side_of_a_row_is_fixed_for_good() -> None:
    """A champion has not seen the rows that it is compared on, even after an upgrade of the libraries."""
    one = pl.DataFrame(
        {
            "size": [0.5],
            "heat": [1.0],
            "color": ["red"],
            "region": ["north"],
            "group": ["a"],
            "member": [True],
            "y": [1],
        }
    )
    assert data._hashes(one, timeless())[0] == pytest.approx(0.8281632803915306, abs=1e-12)


@pytest.mark.parametrize(
    ("first", "second", "overlapping"),
    [("0..0.5", "0.5..1.0", False), ("0..0.5", "0.49..1.0", True), ("0.2..0.3", "0..1.0", True),
     ("2024-01-01..2024-02-01", "2024-02-01..2024-03-01", False), ("2024-01-01..2024-02-02", "2024-02-01..2024-03-01", True)],
)  # fmt: skip
def test_windows_overlap(first: str, second: str, overlapping: bool) -> None:
    a, b = Window.parse(first), Window.parse(second)
    assert data.overlap(a, b) is data.overlap(b, a) is overlapping


@pytest.mark.parametrize(
    ("change", "key", "value"),
    [
        (lambda rows: rows.drop("color"), "data.py", "color"),
        (lambda rows: rows.drop("heat_at"), "data.py", "heat_at"),
        (lambda rows: rows.drop("customer"), "data.py", "customer"),
        (lambda rows: rows.with_columns(y=pl.col("y") + 1), "target", "y"),
    ],
)
def test_a_column_that_load_does_not_return_is_named(rows: pl.DataFrame, change: Any, key: str, value: str) -> None:
    with pytest.raises(UserError) as caught:
        data.require_target(data.select(change(rows), CONTRACT), CONTRACT)
    assert (caught.value.key, caught.value.value) == (key, value)


@pytest.mark.parametrize(
    ("contract", "window", "change", "what"),
    [
        (CONTRACT, "2030-01-01..2030-02-01", lambda rows: rows, "contains no rows"),
        (timeless(), "2024-01-01..2024-02-01", lambda rows: rows, "use fractions"),
        (CONTRACT, "0..0.5", lambda rows: rows.with_columns(pl.lit("noon").alias("at")), "dates or times"),
    ],
)
def test_a_window_that_cannot_be_cut_is_explained(
    rows: pl.DataFrame, contract: Contract, window: str, change: Any, what: str
) -> None:
    with pytest.raises(UserError, match=what):
        data.cut(change(rows), contract, Window.parse(window))


def test_the_newest_days_that_have_rows_are_held_out(rows: pl.DataFrame) -> None:
    """A shop that is closed on Sundays has rows of as many days all the same."""
    contract = Contract.model_validate(synthetic.contract_yaml())
    weekdays = rows.filter(pl.col("at").dt.weekday() < 6)
    train, holdout = data.newest_windows(weekdays, contract)
    assert train
    assert holdout
    held = data.cut(weekdays, contract, holdout).frame
    assert held["at"].dt.date().n_unique() == contract.gate.min_days == 28
    last = weekdays.select(pl.col("at").dt.date().max()).item()
    assert (train.end, holdout.end) == (holdout.start, last + timedelta(1))
    assert data.cut(weekdays, contract, train).frame.height + held.height == weekdays.height
    assert data.newest_windows(weekdays, contract.model_copy(update={"time": None})) == (None, None)


def test_rows_of_the_log_replace_those_of_load_from_their_first_day_on(
    rows: pl.DataFrame, environment: Environment, tmp_path: Path
) -> None:
    """The day is that of the contract's zone; what load() cannot be read as is not made up."""
    contract = synthetic.contract_yaml(time={"column": "at", "zone": "America/New_York", "lead_minutes": 60})
    spoilt = rows.with_columns(heat=pl.col("heat").cast(pl.String).fill_null("calm"), y=1)
    definition = synthetic.write_model(tmp_path, spoilt, contract)
    first = datetime(2024, 2, 1, 5, tzinfo=UTC)  # midnight there
    fresh = rows.filter(pl.col("at") >= first + timedelta(hours=3)).with_columns(y=0, heat_at=None, known_at=None)
    found = data.prepare(environment, definition, fresh)
    assert found.filter(pl.col("at") >= first)["y"].unique().to_list() == [0.0]
    assert found.filter(pl.col("at") < first)["y"].unique().to_list() == [1.0]
    before = spoilt.filter(pl.col("at") < first, pl.col("heat") != "calm")
    assert found.height == before.height + fresh.height
    assert found.filter(pl.col("at") < first)["heat"].null_count() == 0
    assert data.prepare(environment, definition, fresh, alone=True).height == fresh.height
