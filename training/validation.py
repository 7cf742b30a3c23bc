from pathlib import Path

import pandera.polars as pa
import polars as pl
from pandera.errors import SchemaErrors

from mlops.contract import Contract
from mlops.errors import UserError


def schema(contract: Contract) -> pa.DataFrameSchema:
    columns = {}
    for name, feature in contract.features.items():
        checks = [pa.Check.in_range(*feature.range)] if feature.range else []
        columns[name] = pa.Column(nullable=feature.missing, checks=checks)
    columns[contract.target] = pa.Column(nullable=False)
    return pa.DataFrameSchema(columns)


def typed(frame: pl.DataFrame, contract: Contract) -> pl.DataFrame:
    """Columns cast to the contract's types; what is not a number becomes missing, which the contract allows or refuses."""
    casts = []
    for name, feature in contract.features.items():
        kind = {"number": pl.Float64, "boolean": pl.Boolean, "category": pl.String}[feature.type]
        column = pl.col(name).cast(kind, strict=False)
        casts.append(column.fill_nan(None) if feature.type == "number" else column)
    casts.append(pl.col(contract.target).cast(pl.Float64, strict=False).fill_nan(None))
    return frame.with_columns(casts)


def validate(frame: pl.DataFrame, contract: Contract, quarantine: Path) -> pl.DataFrame:
    """The good rows. The bad ones go to `quarantine` (CSV) with a column `reasons`; too many of them stop the training."""
    frame = typed(frame, contract)
    row, reasons = (name if name not in frame.columns else f"quarantine_{name}" for name in ("row", "reasons"))
    frame = frame.with_row_index(row)
    try:
        schema(contract).validate(frame, lazy=True)
        return frame.drop(row)
    except SchemaErrors as error:
        cases = error.failure_cases
    bad = (
        cases.filter(pl.col("index").is_not_null())
        .with_columns(
            reason=pl.format(
                "{}: {} ({})",
                pl.col("column").cast(pl.String),
                pl.col("check").cast(pl.String),
                pl.col("failure_case").cast(pl.String).fill_null("missing"),
            )
        )
        .group_by(pl.col("index").cast(pl.UInt32).alias(row))
        .agg(pl.col("reason").unique(maintain_order=True).str.join("; ").alias(reasons))
    )
    refused = frame.join(bad, on=row, how="inner").sort(row)
    quarantine.parent.mkdir(parents=True, exist_ok=True)
    refused.write_csv(quarantine)
    if refused.height > contract.quarantine_limit * frame.height:
        first = refused[reasons][0]
        found = f"{refused.height} of {frame.height} rows violate the contract (the first: {first})"
        hint = f"{found}; see {quarantine}, then fix load() or the contract"
        raise UserError("quarantine_limit", contract.quarantine_limit, hint)
    return frame.join(bad, on=row, how="anti").drop(row)
