"""What exporters make of models is allowed; what a value could make grow is not."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
from onnx import TensorProto
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn import (
    calibration,
    decomposition,
    discriminant_analysis,
    ensemble,
    feature_selection,
    impute,
    linear_model,
    naive_bayes,
    neural_network,
    svm,
    tree,
)
from sklearn import preprocessing as scale
from sklearn.base import is_classifier
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import make_pipeline

from mlops import graph, sandbox
from mlops.bundle import Bundle
from mlops.errors import VerificationError
from mlops.model import Model, ScoreError
from mlops.sandbox import run_in_sandbox
from tests.proofs import insiders
from tests.proofs.insiders import SIZED, TREES, WORK, chain, changed, node

NUMBERS, CATEGORIES = ["size", "heat"], ["color"]
INPUTS = {"numbers": 3, "categories": 3}  # of the synthetic bundles
LINEAR, LINE = linear_model.LogisticRegression(), linear_model.Ridge()
FEW, BOOST = {"n_estimators": 3}, {"max_iter": 3, "categorical_features": None}
MODELS: list[Any] = [
    LINEAR, linear_model.SGDClassifier(loss="log_loss"), linear_model.RidgeClassifier(), LINE, linear_model.Lasso(),
    linear_model.HuberRegressor(), linear_model.PoissonRegressor(), linear_model.QuantileRegressor(),
    tree.DecisionTreeClassifier(), tree.DecisionTreeRegressor(), ensemble.RandomForestClassifier(3),
    ensemble.RandomForestRegressor(3), ensemble.ExtraTreesClassifier(3), ensemble.GradientBoostingClassifier(**FEW),
    ensemble.GradientBoostingRegressor(**FEW), ensemble.HistGradientBoostingClassifier(**BOOST),
    ensemble.HistGradientBoostingRegressor(**BOOST), ensemble.AdaBoostClassifier(**FEW),
    ensemble.AdaBoostRegressor(**FEW), ensemble.BaggingClassifier(**FEW), ensemble.BaggingRegressor(**FEW),
    ensemble.StackingClassifier([("a", LINEAR)]), ensemble.VotingRegressor([("a", LINE)]), svm.SVC(probability=True),
    svm.SVR(), svm.LinearSVR(), naive_bayes.GaussianNB(), naive_bayes.BernoulliNB(),
    neural_network.MLPClassifier((4,), max_iter=5), calibration.CalibratedClassifierCV(LINEAR, cv=2),
    calibration.CalibratedClassifierCV(svm.LinearSVC(), cv=2),
    calibration.CalibratedClassifierCV(LINEAR, cv=2, method="isotonic"), discriminant_analysis.LinearDiscriminantAnalysis(),
]  # fmt: skip
ONE_HOT = scale.OneHotEncoder(handle_unknown="ignore", sparse_output=False)
STEPS: list[tuple[Any, Any, list[Any]]] = [
    (scale.StandardScaler(), ONE_HOT, []),
    ("passthrough", scale.OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), []),
    (make_pipeline(impute.SimpleImputer(add_indicator=True), scale.MinMaxScaler()), ONE_HOT, []),
    (scale.RobustScaler(), make_pipeline(impute.SimpleImputer(strategy="constant", fill_value="", missing_values=""), ONE_HOT), []),
    (scale.PowerTransformer(), scale.TargetEncoder(), []),
    (scale.PolynomialFeatures(2), ONE_HOT, [decomposition.PCA(2)]),
    (scale.MaxAbsScaler(), ONE_HOT, [feature_selection.SelectKBest(k=2)]),
]  # fmt: skip


def exported(model: Any, numbers: Any, categories: Any, more: list[Any]) -> onnx.ModelProto:
    random = np.random.default_rng(0)
    rows = pd.DataFrame(random.normal(size=(200, 2)).astype(np.float32), columns=NUMBERS)
    rows["color"] = random.choice(["red", "green", "blue"], 200)
    known = rows["size"] + random.normal(size=200)
    columns = ColumnTransformer([("numbers", numbers, NUMBERS), ("categories", categories, CATEGORIES)])
    made = make_pipeline(columns, *more, model).fit(
        rows, (known > 0).astype(int) if is_classifier(model) else abs(known)
    )
    types = [(name, FloatTensorType([None, 1])) for name in NUMBERS] + [("color", StringTensorType([None, 1]))]
    options: Any = {id(made): {"zipmap": False}} if is_classifier(model) else {}
    return to_onnx(made, initial_types=types, options=options, target_opset={"": 18, "ai.onnx.ml": 3})  # ty: ignore[invalid-argument-type]


@pytest.mark.parametrize(
    ("model", "steps"),
    [*((model, STEPS[0]) for model in MODELS), *((LINEAR, steps) for steps in STEPS[1:])],
    ids=lambda each: type(each if not isinstance(each, tuple) else each[0]).__name__,
)
def test_what_the_exporter_makes_of_a_model_is_allowed(model: Any, steps: tuple[Any, Any, list[Any]]) -> None:
    with warnings.catch_warnings(action="ignore"):
        made = exported(model, *steps)
    before = made.SerializeToString()
    assert graph.checked(before, dict.fromkeys([*NUMBERS, *CATEGORIES], 1)).graph == made.graph


@pytest.mark.parametrize("kind", SIZED)
def test_what_could_grow_by_a_value_is_refused(first_bundle: Bundle, kind: str) -> None:
    bundle = changed(first_bundle, *SIZED[kind], **WORK)
    with pytest.raises(VerificationError) as refused:
        graph.checked(bundle.files["model.onnx"], INPUTS)
    assert refused.value.reason == "operators"


@pytest.mark.parametrize("kind", TREES)
def test_what_is_not_made_of_trees_is_refused(first_bundle: Bundle, kind: str) -> None:
    bundle = changed(first_bundle, TREES[kind])
    with pytest.raises(VerificationError) as refused:
        graph.checked(bundle.files["model.onnx"], INPUTS)
    assert refused.value.hint.startswith("has more than" if kind == "a long way down" else "is not made of trees")


def test_a_deep_tree_is_one(first_bundle: Bundle) -> None:
    graph.checked(changed(first_bundle, chain(1000)).files["model.onnx"], INPUTS)


def test_unknown_fields_are_not_loaded(first_bundle: Bundle) -> None:
    extended = Bundle(first_bundle.files | {"model.onnx": first_bundle.files["model.onnx"] + b"\xfa\x7f\x04evil"})
    checked = run_in_sandbox(extended, extended.digest)
    assert b"evil" not in checked.bundle.files["model.onnx"]
    assert run_in_sandbox(checked.bundle, "").bundle == checked.bundle


def test_an_output_that_is_not_one_score_a_row_is_an_error(first_bundle: Bundle) -> None:
    fewer = changed(first_bundle, node("Slice", "score two end", "out"), two=[1], end=[9])
    model = Model(fewer, "")
    rows = [model.schema.row(row) for row in first_bundle.json("golden.json")["rows"][:3]]
    with pytest.raises(ScoreError, match=r"3 rows has the shape \(2, 2\)"):
        model.score(rows)


def test_many_rows_are_scored_as_each_alone(first_bundle: Bundle) -> None:
    model = Model(first_bundle, "")
    rows = [model.schema.row(row) for row in first_bundle.json("golden.json")["rows"]]
    many = (rows * 10)[:301]
    alone = [score for row in many for score in model.score([row])]
    assert model.score(many) == pytest.approx(alone, abs=1e-6)


def test_a_graph_that_is_large_at_one_number_of_rows_alone_is_refused(first_bundle: Bundle) -> None:
    """The rows of 77 and of no other number: the difference to it, as a shape."""
    nodes = [
        node("Shape", "score", "shape"), node("Slice", "shape zero one", "rows"), node("Sub", "rows wanted", "off"), node("Abs", "off", "by"),
        node("Cast", "by", "far", to=TensorProto.BOOL), node("Where", "far one many", "n"), node("ConstantOfShape", "n", "made"),
        node("ReduceMax", "made", "nothing", keepdims=0), node("Add", "score nothing", "out"),
    ]  # fmt: skip
    bundle = changed(first_bundle, *nodes, zero=[0], one=[1], wanted=[77], many=[10**9])
    with pytest.raises(VerificationError) as refused:
        run_in_sandbox(bundle, bundle.digest)
    assert refused.value.reason in ("limits", "load")


def test_children_have_none_of_our_variables() -> None:
    assert set(sandbox.ENVIRONMENT) <= {"PATH", "LANG", "LC_ALL", "PYTHONPATH"}


@pytest.mark.parametrize("name", ["numbers", "score"])
def test_what_a_caller_sends_is_not_taken_for_a_constant_of_the_same_name(first_bundle: Bundle, name: str) -> None:
    bundle = changed(first_bundle, node("Identity", "score", "out"), **{name: np.zeros((1, 3), np.float32)})
    with pytest.raises(VerificationError, match="is given twice"):
        graph.checked(bundle.files["model.onnx"], INPUTS)


def test_an_honest_caller_is_answered_whatever_an_insider_has_signed(tmp_path: Path) -> None:
    few = (
        "a shape by a value: ConstantOfShape",
        "no number at a value",
        "an error at a value",
        "the runtime's own format",
        "many texts",
    )
    found = insiders.prove(tmp_path, few)
    assert found["holds"], found["reason"]
    assert list(found["found"].values()) == ["operators", "serves", "serves", "onnx", "limits"]
