"""Rows in the contract's types, whichever file they come from, and the bad ones among them."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pandera.polars as pa
import polars as pl
from pandera.errors import SchemaErrors

from mlops.contract import Contract
from mlops.errors import UserError
from mlops.moments import moment
from mlops.rows import FLOAT32, MAX_TEXT

ROW, WHY = "row number", "why refused"  # no column has a name with a space
_EXPECTED = {
    "number": "a number",
    "target": "a number",
    "category": "text",
    "boolean": "true or false",
    "moment": "a time in ISO 8601",
}
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_MOMENT = pl.Datetime("us", "UTC")


def typed(frame: pl.DataFrame, contract: Contract) -> tuple[pl.DataFrame, pl.Series]:
    """The contract's columns in its types, moments in UTC; and why a row cannot be read so, null if it can."""
    kinds: dict[str, str] = {name: feature.type for name, feature in contract.features.items()}
    kinds = dict.fromkeys(contract.entity, "category") | kinds
    kinds |= {contract.target: "target", **dict.fromkeys(contract.times, "moment")}
    faults = [pl.Series([""] * frame.height, dtype=pl.String)]
    for name, kind in kinds.items():
        if name in frame.columns:
            given = frame[name].fill_nan(None) if frame[name].dtype.is_float() else frame[name]
            frame = frame.with_columns(read_as(given, kind, contract.zone).alias(name))
            if (wrong := given.is_not_null() & frame[name].is_null()).any():
                shown = _text(given).fill_null(str(given.dtype)).str.slice(0, 40)
                why = pl.format(f"Expected {_EXPECTED[kind]}, got `{{}}` - at `$.{name}`; ", shown)
                faults.append(pl.select(pl.when(wrong).then(why).otherwise(pl.lit(""))).to_series())
    joined = pl.select(pl.concat_str(faults).str.strip_suffix("; ")).to_series()
    return frame, joined.replace("", None)


def read_as(column: pl.Series, kind: str, zone: str = "UTC") -> pl.Series:
    """`kind`: number, category, boolean, moment or target; null where a value is none."""
    if kind == "moment":
        return moments(column, zone)
    if kind == "category":
        return _text(column)
    if kind in ("number", "target"):
        plain = column if column.dtype.is_numeric() or column.dtype == pl.Boolean else _text(column).str.strip_chars()
        numbers = plain.cast(pl.Float64, strict=False).fill_nan(None)
        return numbers if kind == "number" else numbers.fill_null(read_as(column, "boolean", zone).cast(pl.Float64))
    if column.dtype == pl.Boolean:
        return column
    words = _text(column.cast(pl.Int64, strict=False) if column.dtype.is_float() else column)
    return words.str.strip_chars().str.to_lowercase().replace_strict(_BOOLEANS, default=None, return_dtype=pl.Boolean)


def _text(column: pl.Series) -> pl.Series:
    if column.dtype.is_nested() or column.dtype in (pl.Binary, pl.Object):
        return pl.Series([None] * len(column), dtype=pl.String)
    return column.cast(pl.String)


def moments(column: pl.Series, zone: str) -> pl.Series:
    """Dates, local times and texts as `mlops.moments` reads them; null where it cannot."""
    if isinstance(column.dtype, pl.Datetime) and column.dtype.time_zone:
        found = column.dt.convert_time_zone("UTC").cast(_MOMENT)
        return pl.select(pl.when(found.dt.year().is_between(1970, 2199)).then(found)).to_series()
    read: dict[Any, Any] = {}
    if column.dtype in (pl.String, pl.Date) or isinstance(column.dtype, pl.Datetime):
        for value in column.drop_nulls().unique():
            with suppress(ValueError):
                read[value] = moment(value, zone)
    given, meant = pl.Series(list(read), dtype=column.dtype), pl.Series(list(read.values()), dtype=_MOMENT)
    return column.replace_strict(given, meant, default=None)


def schema(contract: Contract) -> pa.DataFrameSchema:
    columns = {name: pa.Column(nullable=False) for name in contract.times[:1] if contract.time}
    columns[contract.target] = pa.Column(nullable=False, checks=[pa.Check.in_range(-FLOAT32, FLOAT32)])
    for name, feature in contract.features.items():
        checks = [pa.Check.str_length(max_value=MAX_TEXT)] if feature.type == "category" else []
        if feature.type == "number":
            checks = [pa.Check.in_range(*(feature.range or (-FLOAT32, FLOAT32)))]
        columns[name] = pa.Column(nullable=feature.missing, checks=checks)
    return pa.DataFrameSchema(columns)


def good_and_bad(frame: pl.DataFrame, contract: Contract) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The good rows in the contract's types; the positions of the bad ones (`row number`) and `why refused`."""
    rows, unread = typed(frame, contract)
    rows = rows.with_row_index(ROW)
    bad = rows.select(ROW).with_columns(unread.alias(WHY)).drop_nulls()
    try:
        schema(contract).validate(rows, lazy=True)
    except SchemaErrors as error:
        cases = error.failure_cases.filter(pl.col("index").is_not_null()).rename({"index": ROW}).cast({ROW: pl.UInt32})
        value = pl.col("failure_case").cast(pl.String).str.slice(0, 40).fill_null("missing")
        why = pl.format("{}: {} ({})", pl.col("column").cast(pl.String), pl.col("check").cast(pl.String), value)
        bad = pl.concat([bad, cases.join(bad, on=ROW, how="anti").select(ROW, why.alias(WHY))])
    bad = bad.group_by(ROW).agg(pl.col(WHY).unique(maintain_order=True).str.join("; ")).sort(ROW)
    return rows.join(bad, on=ROW, how="anti").drop(ROW), bad


def validate(frame: pl.DataFrame, contract: Contract, quarantine: Path) -> pl.DataFrame:
    """The good rows. The bad ones go to `quarantine` (CSV) with a column `reasons`; too many of them stop the training."""
    good, bad = good_and_bad(frame, contract)
    quarantine.unlink(missing_ok=True)  # of the training before
    if bad.height:
        _write(frame[bad[ROW]], bad, quarantine)
    if bad.height > contract.quarantine_limit * frame.height:
        found = f"{bad.height} of {frame.height} rows violate the contract (the first: {bad[WHY][0]})"
        hint = f"{found}; see {quarantine}, then fix load() or the contract"
        raise UserError("quarantine_limit", contract.quarantine_limit, hint)
    return good


def _write(rows: pl.DataFrame, bad: pl.DataFrame, file: Path) -> None:
    """As load() returned them."""
    row, reasons = (name if name not in rows.columns else f"quarantine_{name}" for name in ("row", "reasons"))
    shown = [_text(column).alias(column.name) for column in rows]
    file.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame([bad[ROW].alias(row), *shown, bad[WHY].alias(reasons)]).write_csv(file)
