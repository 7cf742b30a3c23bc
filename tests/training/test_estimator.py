from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from scipy.sparse import issparse
from sklearn.ensemble import RandomForestClassifier
from sklearn.pipeline import Pipeline
from threadpoolctl import threadpool_limits

from mlops.bundle import MAX_WATCHED
from mlops.contract import Contract
from mlops.model import Model
from mlops.sandbox import TOLERANCE
from tests import synthetic
from training import estimator, export, features, package, profile


@pytest.mark.parametrize("kind", ["boosting", "linear"])
def test_the_model_does_not_depend_on_how_many_cores_there_are(kind: str) -> None:
    digests = set()
    for threads in (1, 2, 4):
        with threadpool_limits(limits=threads):
            digests.add(synthetic.build(estimator=kind).digest)
    assert len(digests) == 1


def test_many_levels_are_not_made_dense() -> None:
    contract = Contract.model_validate(
        synthetic.contract_yaml(features={"size": {"type": "number"}, "color": {"type": "category"}}, slices=[])
    )
    rows = pl.DataFrame(
        {
            "size": [float(n) for n in range(6000)],
            "color": [f"c{n % 3000}" for n in range(6000)],
            "y": [0.0, 1.0] * 3000,
        }
    )
    made = estimator.fit(estimator.baseline(contract), rows, contract)
    assert issparse(made.named_steps["features"].transform(features.inputs(rows[:10], contract)))


def test_a_forest_is_exported_as_it_was_fitted() -> None:
    """A float64 threshold lies between two float32 values: the graph must send both the same way."""
    contract = Contract.model_validate(
        synthetic.contract_yaml(features={"size": {"type": "number"}}, slices=[], time=None)
    )
    values = np.float32(np.random.default_rng(0).integers(0, 400, 4000) / 10)
    rows = pl.DataFrame(
        {"size": values.astype(float), "y": np.random.default_rng(1).integers(0, 2, 4000).astype(float)}
    )
    forest = Pipeline(
        [("features", features.preprocess(contract)), ("model", RandomForestClassifier(30, random_state=0))]
    )
    fitted = estimator.fit(forest, rows, contract)
    wanted = estimator.score(fitted, rows, contract)
    model = Model(package.unmeasured(contract, fitted, export.export(fitted, contract), rows), "")
    assert export.parity(model.score_arrays(features.arrays(rows, contract)), wanted) <= TOLERANCE


def test_of_many_features_the_most_telling_are_watched() -> None:
    names = [f"f{n}" for n in range(60)]
    contract = Contract.model_validate(
        synthetic.contract_yaml(features={name: {"type": "number"} for name in names}, slices=[], time=None)
    )
    values = np.random.default_rng(0).normal(size=(500, 60))
    rows = pl.DataFrame({name: values[:, i] for i, name in enumerate(names)} | {"y": (values[:, 7] > 0).astype(float)})
    watched = profile.profile(contract, rows, np.full(500, 0.5))["watched"]
    assert len(watched) == MAX_WATCHED
    assert "f7" in watched
