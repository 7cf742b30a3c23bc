from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from mlops.contract import Contract
from tests import synthetic
from training import leakage


def contract(task: str = "binary", **features: dict[str, Any]) -> Contract:
    raw = synthetic.contract_yaml(task, after=[])
    return Contract.model_validate(raw | {"features": raw["features"] | features})


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    return synthetic.frame(40, 50)


def test_a_value_that_became_known_after_the_prediction_is_named_with_its_rows(rows: pl.DataFrame) -> None:
    assert leakage.known_too_late(rows, contract()) == {}
    late = rows.with_columns(
        heat_at=pl.when(pl.int_range(pl.len()) < 60)
        .then(pl.col("at") - pl.duration(minutes=59))
        .otherwise(pl.col("heat_at"))
    )
    wanted = late[:60]["heat"].count()
    assert 0 < wanted < 60, "a missing value is never late"
    assert leakage.known_too_late(late, contract()) == {"heat": wanted}
    check = leakage.checks(contract(), late)[0]
    assert (check.name, check.outcome) == ("known_at", "fail")
    assert check.why == f"heat became known after the prediction in {wanted} rows"


def test_a_value_known_at_the_very_moment_is_in_time(rows: pl.DataFrame) -> None:
    assert leakage.known_too_late(rows.with_columns(heat_at=pl.col("at") - pl.duration(minutes=60)), contract()) == {}


@pytest.mark.parametrize("column", ["settled", "closed", "refund", "reason", "settled upside down"])
def test_a_column_that_alone_gives_away_the_outcome_is_named(rows: pl.DataFrame, column: str) -> None:
    y = rows["y"].to_numpy()
    nearly = np.where(np.random.default_rng(0).random(len(y)) < 0.05, 1 - y, y)
    name = column.split()[0]
    kind, values = {
        "settled": ("number", pl.Series(y + np.random.default_rng(1).normal(scale=0.3, size=len(y)))),
        "settled upside down": ("number", pl.Series(-y + np.random.default_rng(1).normal(scale=0.3, size=len(y)))),
        "closed": ("boolean", pl.Series(nearly == 1)),
        "refund": ("number", pl.Series([12.5 if n else None for n in nearly])),
        "reason": ("category", pl.Series(["other" if n else None for n in nearly])),
    }[column]
    checks = leakage.checks(
        contract("binary", **{name: {"type": kind, "missing": True}}), rows.with_columns(values.alias(name))
    )
    check = next(c for c in checks if c.name == "leakage")
    assert check.outcome == "fail"
    assert check.why.startswith(f"{name} alone has AUC 0.9")


def test_honest_columns_are_not_named(rows: pl.DataFrame) -> None:
    found = leakage.single_feature_auc(contract(), rows)
    assert set(found) == set(contract().features)
    assert max(found.values()) < 0.85
    assert found["size"] > 0.65


def test_a_category_with_a_level_for_each_row_is_no_leak(rows: pl.DataFrame) -> None:
    numbered = rows.with_columns(order=pl.Series([f"order {i}" for i in range(rows.height)]))
    assert leakage.single_feature_auc(contract(order={"type": "category"}), numbered)["order"] < 0.6


def test_a_regression_target_above_its_median_counts(rows: pl.DataFrame) -> None:
    found = leakage.single_feature_auc(contract("regression", settled={"type": "number"}), rows)
    assert found["settled"] > 0.95
