from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mlops.contract import Contract
from mlops.errors import UserError
from tests import synthetic
from training.validation import validate

FAULTS: dict[str, tuple[str, Any, str]] = {
    "above the range": ("size", 51.0, "size: in_range(-50.0, 50.0) (51.0)"),
    "below the range": ("size", -50.1, "size: in_range(-50.0, 50.0) (-50.1)"),
    "missing where it may not be": ("size", None, "size: not_nullable (missing)"),
    "NaN where it may not be missing": ("size", float("nan"), "size: not_nullable (missing)"),
    "a missing category": ("color", None, "color: not_nullable (missing)"),
    "a missing boolean": ("member", None, "member: not_nullable (missing)"),
    "no target": ("y", None, "y: not_nullable (missing)"),
}


def contract(**changes: Any) -> Contract:
    return Contract.model_validate(synthetic.contract_yaml(**changes))


def with_value(rows: pl.DataFrame, row: int, column: str, value: Any) -> pl.DataFrame:
    return rows.with_columns(
        pl.when(pl.int_range(pl.len()) == row).then(pl.lit(value)).otherwise(pl.col(column)).alias(column)
    )


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_row_goes_to_quarantine_with_its_reason(tmp_path: Path, fault: str) -> None:
    column, value, reason = FAULTS[fault]
    rows = synthetic.frame(20, 10)
    good = validate(with_value(rows, 42, column, value), contract(), tmp_path / "quarantine.csv")
    assert good.height == 199
    assert good["customer"].to_list() == [c for i, c in enumerate(rows["customer"]) if i != 42]
    kept = pl.read_csv(tmp_path / "quarantine.csv")
    assert kept["row"].to_list() == [42]
    assert kept["reasons"].to_list() == [reason]
    assert set(rows.columns) < set(kept.columns)


def test_a_row_with_several_faults_has_all_their_reasons(tmp_path: Path) -> None:
    rows = with_value(with_value(with_value(synthetic.frame(20, 10), 3, "size", 99.0), 3, "color", None), 9, "y", None)
    validate(rows, contract(), tmp_path / "quarantine.csv")
    reasons = dict(pl.read_csv(tmp_path / "quarantine.csv").select("row", "reasons").iter_rows())
    assert set(reasons) == {3, 9}
    assert set(reasons[3].split("; ")) == {"size: in_range(-50.0, 50.0) (99.0)", "color: not_nullable (missing)"}


def test_columns_with_our_names_keep_their_values(tmp_path: Path) -> None:
    rows = synthetic.frame(20, 10).with_columns(row=pl.int_range(pl.len()) * 2, reasons=pl.lit("own"))
    good = validate(with_value(rows, 3, "size", 99.0), contract(), tmp_path / "quarantine.csv")
    assert good.columns == rows.columns
    assert good["row"].to_list() == [2 * n for n in range(200) if n != 3]
    kept = pl.read_csv(tmp_path / "quarantine.csv").row(0, named=True)
    assert (kept["row"], kept["quarantine_row"], kept["reasons"]) == (6, 3, "own")
    assert kept["quarantine_reasons"].startswith("size: in_range")


def test_text_in_a_number_is_a_missing_number(tmp_path: Path) -> None:
    rows = with_value(synthetic.frame(20, 10).with_columns(pl.col("size").cast(pl.String)), 5, "size", "n/a")
    assert validate(rows, contract(), tmp_path / "quarantine.csv").schema["size"] == pl.Float64
    assert pl.read_csv(tmp_path / "quarantine.csv")["row"].to_list() == [5]


def test_a_value_that_may_be_missing_stays(tmp_path: Path) -> None:
    rows = with_value(synthetic.frame(20, 10), 5, "heat", float("nan"))
    good = validate(rows, contract(), tmp_path / "quarantine.csv")
    assert good.height == rows.height
    assert good["heat"][5] is None
    assert not (tmp_path / "quarantine.csv").exists()


@pytest.mark.parametrize(("bad", "stops"), [(2, False), (3, True)])
def test_beyond_the_limit_the_training_stops_and_names_file_and_first_reason(
    tmp_path: Path, bad: int, stops: bool
) -> None:
    rows = synthetic.frame(20, 10)
    for row in range(bad):
        rows = with_value(rows, 10 * row + 7, "size", 60.0 + row)
    if not stops:
        assert validate(rows, contract(), tmp_path / "q.csv").height == 198
        return
    with pytest.raises(UserError, match="3 of 200 rows") as caught:
        validate(rows, contract(), tmp_path / "q.csv")
    assert caught.value.key == "quarantine_limit"
    assert "size: in_range(-50.0, 50.0) (60.0)" in caught.value.hint
    assert str(tmp_path / "q.csv") in caught.value.hint
    assert pl.read_csv(tmp_path / "q.csv").height == 3
