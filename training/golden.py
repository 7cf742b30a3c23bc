"""The contract's golden rows: facts that no average shows, such as two columns that were swapped."""

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import polars as pl

from mlops.contract import Contract, Golden
from mlops.verdict import Check, check

Score = Callable[[list[dict[str, Any]]], list[float]]


def check_golden(contract: Contract, frame: pl.DataFrame, score: Score) -> list[Check]:
    """`frame`: all rows that training may see; `score`: request rows to scores."""
    return [_data(golden, frame) if golden.where else _model(golden, score) for golden in contract.golden]


def _data(golden: Golden, frame: pl.DataFrame) -> Check:
    name, found = f"golden:{golden.about}", frame
    for column, value in (golden.where or {}).items():
        if column not in frame.columns:
            return check(name, False, column, "a column", f"'where' names {column!r}, which load() does not return")
        found = found.filter(pl.Series([_same(got, value) for got in found[column]], dtype=pl.Boolean))
    if found.height == 0:
        why = f"load() returns no row with {golden.where}; it must keep the golden rows"
        return check(name, False, "no row", "≥ 1 row", why)
    for column, want in (golden.expect or {}).items():
        got = found[column][0] if column in found.columns else None
        if not _same(got, want):
            return check(name, False, str(got), f"= {want}", f"{column} is {got!r}, it must be {want!r}")
    return check(name, True, "as expected", "as expected", "")


def _same(got: Any, want: Any) -> bool:
    """Columns of a CSV are text."""
    with suppress(TypeError, ValueError):
        return math.isclose(float(got), float(want), rel_tol=1e-6)
    return str(got) == str(want)


def _model(golden: Golden, score: Callable[[list[dict[str, Any]]], list[float]]) -> Check:
    row = golden.row or {}
    before, after = score([row, row | (golden.change or {})])
    moved = after - before if golden.score == "higher" else before - after
    why = f"the score goes from {before:.3f} to {after:.3f}; it must be {golden.score} by {golden.by}"
    return check(f"golden:{golden.about}", moved >= golden.by, moved, f"≥ {golden.by}", why)
