from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from mlops.contract import Contract
from monitoring.sums import Measures
from tests.synthetic import contract_yaml
from training import evaluation


@pytest.mark.parametrize(("task", "unit"), [("binary", 1.0), ("regression", 2.5)])
def test_the_loss_is_that_of_the_training(task: str, unit: float) -> None:
    contract, random = Contract.model_validate(contract_yaml(task)), np.random.default_rng(0)
    score = np.concatenate([[0.0, 1.0, 0.0, 1.0, 1e-9], random.random(200)])
    value = np.concatenate([[0.0, 1.0, 1.0, 0.0, 1.0], random.integers(0, 2, 200)])
    if task == "regression":
        score, value = 40 * score - 20, 30 * value - random.normal(size=len(value))
    rows = pl.DataFrame({"score": score, "value": value})
    found = rows.select(Measures(contract, unit).loss(pl.col("score"))).to_series().to_numpy()
    assert found == pytest.approx(evaluation.loss(contract, value, score, unit), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_without_an_outcome_there_is_no_loss(task: str) -> None:
    rows = pl.DataFrame({"score": [0.5], "value": [None]}, schema={"score": pl.Float64, "value": pl.Float64})
    loss = Measures(Contract.model_validate(contract_yaml(task))).loss(pl.col("score"))
    assert rows.select(loss).item() is None
