from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.neighbors import NearestNeighbors
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer

from mlops.contract import Contract
from mlops.environment import ROOT
from mlops.errors import UserError
from mlops.model import Model
from mlops.sandbox import TOLERANCE
from tests import synthetic
from training import data, estimator, export, features, package, pipeline

OWN_CATEGORIES = """
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import Pipeline

from training import features


def pipeline(contract, parameters, seed):
    places = list(range(len(contract.numbers), len(contract.features)))
    model = HistGradientBoostingClassifier(categorical_features=places, early_stopping=False, random_state=seed)
    return Pipeline([("features", features.preprocess(contract)), ("model", model)])
"""

FOREST = """
from sklearn.ensemble import RandomForestClassifier
from sklearn.pipeline import Pipeline

from training import features


def pipeline(contract, parameters, seed):  # right without missing values
    return Pipeline([("features", features.preprocess(contract)), ("model", RandomForestClassifier(20, random_state=seed))])
"""


def contract(task: str = "binary", **features: dict[str, Any]) -> Contract:
    raw = synthetic.contract_yaml(task)
    return Contract.model_validate(raw | {"features": features or raw["features"], "slices": []})


def difference(fitted: Pipeline, rows: pl.DataFrame, contract: Contract) -> float:
    expected = estimator.score(fitted, rows, contract)  # before the export, which may touch the pipeline
    graph = export.export(fitted, contract)
    model = Model(package.unmeasured(contract, fitted, graph, rows), "")
    return export.parity(model.score_arrays(features.arrays(rows, contract)), expected)


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    return data.canonical(synthetic.frame(40, 50).with_columns(pl.col("y", "amount").cast(pl.Float64)))


@pytest.fixture(scope="module")
def strange() -> pl.DataFrame:
    """Rows as training never saw them: unknown categories, missing values, far numbers."""
    rows = synthetic.frame(20, 50, seed=7).with_columns(pl.col("y", "amount").cast(pl.Float64))
    place = pl.int_range(pl.len())
    return rows.with_columns(
        color=pl.when(place % 3 == 0)
        .then(pl.lit("never seen"))
        .when(place % 7 == 0)
        .then(None)
        .otherwise(pl.col("color")),
        group=pl.when(place % 5 == 0).then(pl.lit("ünïcode ☃")).otherwise(pl.col("group")),
        heat=pl.when(place % 2 == 0).then(None).otherwise(pl.col("heat")),
        size=pl.when(place % 11 == 0).then(pl.lit(-50.0)).otherwise(pl.col("size")),
    )


@pytest.mark.parametrize("task", ["binary", "regression"])
@pytest.mark.parametrize("kind", ["boosting", "linear"])
def test_the_graph_answers_as_the_pipeline_does(
    rows: pl.DataFrame, strange: pl.DataFrame, task: str, kind: str
) -> None:
    made = contract(task)
    parameters = {"max_iter": 40} if kind == "boosting" else {"estimator": kind}
    fitted = estimator.fit(estimator.build(made, parameters, 0, features.preprocess), rows, made)
    assert difference(fitted, pl.concat([rows, strange.select(rows.columns)]), made) <= TOLERANCE


@pytest.mark.parametrize(
    ("made", "preprocess", "model"),
    [
        (
            contract(size={"type": "number"}, color={"type": "category"}),
            features.preprocess,
            RandomForestClassifier(20, random_state=0),
        ),
        (contract(), features.preprocess_linear, MLPClassifier((8,), max_iter=50, random_state=0)),
    ],
    ids=["forest", "network"],
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_other_estimators_export_too(
    rows: pl.DataFrame, strange: pl.DataFrame, made: Contract, preprocess: Any, model: Any
) -> None:
    fitted = estimator.fit(make_pipeline(preprocess(made), model), rows, made)
    assert difference(fitted, strange, made) <= TOLERANCE


def test_a_bundle_has_the_same_digest_whichever_process_makes_it() -> None:
    """Each process salts the hashes of strings anew, so the order of a set differs."""
    command = [sys.executable, "-c", "from tests import synthetic; print(synthetic.build(max_iter=5).digest)"]
    salts = ("0", "1")
    digests = {
        subprocess.run(
            command, cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": salt}, stdout=subprocess.PIPE, check=True
        ).stdout
        for salt in salts
    }
    assert len(digests) == 1


def on_a_grid(rows: int, seed: int) -> pl.DataFrame:
    """Temperatures in steps of 0.18 °F, as 0.1 °C gives: the midpoint of two of them is often a third."""
    random = np.random.default_rng(seed)
    degrees = (32 + 0.18 * random.choice(np.arange(0, 400, 2) if seed == 0 else np.arange(400), rows)).round(2)
    return pl.DataFrame(
        {"heat": degrees, "y": (random.random(rows) < 1 / (1 + np.exp(-np.sin(degrees / 3) * 3))).astype(float)}
    )


def test_values_between_those_of_training_go_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    made = contract(heat={"type": "number"}).model_copy(update={"time": None})

    def measured() -> float:
        fitted = estimator.fit(
            estimator.build(made, {"max_iter": 50}, 0, features.preprocess), on_a_grid(4000, 0), made
        )
        return difference(fitted, on_a_grid(4000, 1), made)

    assert measured() <= TOLERANCE
    monkeypatch.setattr(export, "_float32_thresholds", lambda pipeline: None)
    assert measured() > 100 * TOLERANCE, "the grid does not meet the thresholds: this test would show nothing"


def test_the_thresholds_that_ship_decide_as_the_fitted_ones(rows: pl.DataFrame) -> None:
    made = contract()
    fitted = estimator.fit(estimator.build(made, {"max_iter": 20}, 0, features.preprocess), rows, made)
    before = estimator.score(fitted, rows, made)
    export.export(fitted, made)
    assert (estimator.score(fitted, rows, made) == before).all()


@pytest.mark.parametrize(
    ("code", "step"), [(OWN_CATEGORIES, "HistGradientBoostingClassifier"), (FOREST, "RandomForestClassifier")]
)
def test_an_estimator_that_exports_wrongly_is_refused_after_a_fit_of_few_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, step: str
) -> None:
    definition = synthetic.write_model(tmp_path, synthetic.frame(200, 200), features=code)
    rows, fitted, fit = definition.load(), [], estimator.fit
    monkeypatch.setattr(estimator, "fit", lambda *given: fitted.append(given[1].height) or fit(*given))
    with pytest.raises(UserError, match="exports to a different model: scores differ by") as caught:
        pipeline.smoke(definition, rows, 0)
    assert len(fitted) == 1
    assert fitted[0] < rows.height / 50
    assert (caught.value.key, caught.value.value) == ("features.py", step)


def test_an_estimator_without_any_export_is_refused_by_name(rows: pl.DataFrame) -> None:
    fitted = Pipeline([("odd", FunctionTransformer(lambda x: x)), ("neighbours", NearestNeighbors())])
    with pytest.raises(UserError, match="has no ONNX form") as caught:
        export.export(fitted, contract(size={"type": "number"}))
    assert caught.value.value == "NearestNeighbors"


def test_smoke_passes_the_default_and_a_sparse_column(tmp_path: Path) -> None:
    rows = synthetic.frame(50, 200)
    some = pl.when(pl.int_range(pl.len()) == 7).then(1.0)
    for kind, table in (("plain", rows), ("sparse", rows.with_columns(heat=some))):
        definition = synthetic.write_model(tmp_path / kind, table)
        pipeline.smoke(definition, definition.load(), 0)


def test_a_column_without_any_value_is_named() -> None:
    made, rows = contract(), synthetic.frame(20, 20).with_columns(heat=pl.lit(None, pl.Float64))
    with pytest.raises(UserError, match="has no value in any row") as caught:
        estimator.fit(estimator.build(made, {}, 0, features.preprocess), rows, made)
    assert caught.value.value == "heat"


@pytest.mark.parametrize(
    ("exported", "original", "wanted"), [([0.5, 0.5], [0.5, 0.4], 0.1), ([1000.0], [1001.0], 1 / 1001), ([], [], 0.0)]
)
def test_parity_is_the_largest_difference_relative_beyond_one(
    exported: list[float], original: list[float], wanted: float
) -> None:
    assert export.parity(np.array(exported), np.array(original)) == pytest.approx(wanted)


def test_a_score_that_is_not_finite_is_no_parity() -> None:
    assert not export.parity(np.array([np.nan]), np.array([0.5])) <= TOLERANCE
