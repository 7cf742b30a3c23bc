from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline
from threadpoolctl import threadpool_limits

from mlops.contract import Contract
from mlops.errors import UserError
from training import features

DEFAULTS: dict[str, dict[str, Any]] = {
    "boosting": {
        "learning_rate": 0.1, "max_iter": 100, "max_leaf_nodes": 31, "min_samples_leaf": 20, "l2_regularization": 0.0,
    },
    "linear": {"regularization": 1.0},
}  # fmt: skip


def build(contract: Contract, parameters: dict[str, Any], seed: int, preprocess: Callable[[Contract], Any]) -> Pipeline:
    """An unfitted pipeline. `parameters`: `estimator` (boosting, the default, or linear) and its own.

    No early stopping: it holds out random rows, so the model would depend on more than data and parameters.
    """
    parameters = dict(parameters)
    kind = parameters.pop("estimator", "boosting")
    if kind not in DEFAULTS:
        raise UserError("parameters.estimator", kind, "use boosting or linear")
    if unknown := set(parameters) - set(DEFAULTS[kind]):
        raise UserError("parameters", sorted(unknown)[0], f"is not one of {', '.join(DEFAULTS[kind])}")
    parameters = DEFAULTS[kind] | parameters
    if kind == "linear":
        strength = parameters["regularization"]
        model = LogisticRegression(C=1 / strength, max_iter=500) if contract.task == "binary" else Ridge(alpha=strength)
        return Pipeline([("features", features.preprocess_linear(contract)), ("model", model)])
    # categorical_features=None: with its own encoding of categories it exports a different model.
    options = parameters | {"early_stopping": False, "random_state": seed, "categorical_features": None}
    if contract.task == "binary":
        model = HistGradientBoostingClassifier(**options)
    else:
        model = HistGradientBoostingRegressor(**options, loss="absolute_error")
    return Pipeline([("features", preprocess(contract)), ("model", model)])


def baseline(contract: Contract) -> Pipeline:
    return build(contract, {"estimator": "linear"}, 0, features.preprocess)


@threadpool_limits.wrap(limits=1)  # sums of floats depend on the number of threads: one, for the same model everywhere
def fit(pipeline: Pipeline, frame: pl.DataFrame, contract: Contract) -> Pipeline:
    if empty := [name for name in contract.features if frame[name].null_count() == frame.height]:
        hint = "has no value in any row of the training window; remove it from the contract, or use a longer window"
        raise UserError("features", empty[0], hint)
    rows, y = features.inputs(frame, contract), frame[contract.target].to_numpy()
    pipeline.fit(rows, y)
    if isinstance(model := pipeline.steps[-1][1], Ridge):
        # The loss is the absolute error: its constant is the median.
        model.intercept_ += np.median(y - pipeline.predict(rows))
    return pipeline


@threadpool_limits.wrap(limits=1)
def score(pipeline: Pipeline, frame: pl.DataFrame, contract: Contract) -> np.ndarray:
    """Probability of the positive class, or the value; shape (rows,)."""
    rows = features.inputs(frame, contract)
    return pipeline.predict_proba(rows)[:, 1] if contract.task == "binary" else pipeline.predict(rows)
