"""What exporters make of models is allowed; what a value could make grow is not."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
from onnx import TensorProto, helper, numpy_helper
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
    return to_onnx(made, initial_types=types, options=options, target_opset={"": 18, "ai.onnx.ml": 3})  # ty: ignore[invalid-return-type, invalid-argument-type]


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


Change = Callable[[onnx.ModelProto], None]


def node(kind: str, inputs: str, output: str, **attributes: Any) -> Any:
    return helper.make_node(kind, inputs.split(), output.split(), **attributes)


def changed(bundle: Bundle, *nodes: Any, **constants: Any) -> Bundle:
    """With nodes between the score and the output: from `score`, shape (rows, 2), to `out`."""
    model = onnx.load_model_from_string(bundle.files["model.onnx"])
    output = model.graph.output[-1].name
    for each in model.graph.node:
        each.output[:] = ["score" if name == output else name for name in each.output]
    for each in nodes:
        each.output[:] = [output if name == "out" else name for name in each.output]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(numpy_helper.from_array(np.array(value), name) for name, value in constants.items())
    return Bundle(bundle.files | {"model.onnx": model.SerializeToString()})


# Where the size is 0.1234: as many rows, or numbers, as somebody wishes.
AT = [node("Equal", "size trigger", "is_it"), node("Cast", "is_it", "it", to=TensorProto.FLOAT)]
TRIGGER = np.array([[0.1234]], np.float32)
COUNT = [*AT, node("ReduceMax", "it", "most", keepdims=0), node("Cast", "most", "count", to=TensorProto.INT64)]
WORK = {"trigger": TRIGGER, "flat": np.array([1]), "two": np.array([2]), "least": np.float32(0)}
SIZED: dict[str, list[Any]] = {
    "ConstantOfShape": [*COUNT, node("Reshape", "count flat", "n"), node("ConstantOfShape", "n", "made")],
    "Expand": [*COUNT, node("Reshape", "count flat", "n"), node("Expand", "score n", "made")],
    "Tile": [*COUNT, node("Concat", "count count", "n", axis=0), node("Tile", "score n", "made")],
    "Range": [*COUNT, node("Range", "count count count", "made")],
    "Slice": [*COUNT, node("Reshape", "count flat", "n"), node("Slice", "score n two", "made")],
    "TopK": [*COUNT, node("Reshape", "count flat", "n"), node("TopK", "score n", "made places")],
    "Reshape": [*COUNT, node("Concat", "flat count", "n", axis=0), node("Reshape", "score n", "made")],
    "NonZero": [*AT, node("NonZero", "it", "made")],
    "Compress": [*AT, node("Compress", "score is_it", "made", axis=0)],
    "Unique": [node("Unique", "score", "made")],
    "OneHot": [*COUNT, node("OneHot", "two count two", "made")],
    "Pad": [*COUNT, node("Pad", "score count", "made")],
    "Resize": [*AT, node("Resize", "score  it", "made")],
    "RandomNormalLike": [node("RandomNormalLike", "score", "made")],
    "Dropout": [node("Dropout", "score", "made")],
    "StringConcat": [node("StringConcat", "color color", "made")],
    "RegexFullMatch": [node("RegexFullMatch", "color", "made", pattern="(a*)*b")],
    "TfIdfVectorizer": [node("TfIdfVectorizer", "color", "made")],
    "EyeLike": [node("EyeLike", "score", "made")],
    "SequenceInsert": [node("SequenceInsert", "score", "made")],
    "Optional": [node("Optional", "score", "made")],
    "Tokenizer": [node("Tokenizer", "color", "made", domain="com.microsoft")],
}  # fmt: skip


@pytest.mark.parametrize("kind", SIZED)
def test_what_could_grow_by_a_value_is_refused(first_bundle: Bundle, kind: str) -> None:
    bundle = changed(first_bundle, *SIZED[kind], **WORK)
    with pytest.raises(VerificationError) as refused:
        graph.checked(bundle.files["model.onnx"], INPUTS)
    assert refused.value.reason == "operators"


def ensemble_of(true: list[int], false: list[int], leaves: Collection[int], **more: Any) -> Any:
    n = len(true)
    told: dict[str, Any] = {
        "nodes_treeids": [0] * n, "nodes_nodeids": list(range(n)), "nodes_truenodeids": true, "nodes_falsenodeids": false,
        "nodes_modes": ["LEAF" if place in leaves else "BRANCH_LEQ" for place in range(n)],
    }  # fmt: skip
    return node("TreeEnsembleRegressor", "score", "out", domain="ai.onnx.ml", **(told | more))


def chain(depth: int) -> Any:
    """Each branch has a leaf, and the next branch."""
    branches, n = [0, *range(1, 2 * depth - 1, 2)], 2 * depth + 1
    true, false = [0] * n, [0] * n
    for place, branch in enumerate(branches):
        true[branch], false[branch] = 2 * place + 1, 2 * place + 2
    return ensemble_of(true, false, set(range(n)) - set(branches))


TREES = {
    "a circle": ensemble_of([1, 0, 0], [2, 2, 0], [2]),
    "a circle beside a tree": ensemble_of([1, 0, 0, 4, 3], [2, 0, 0, 3, 4], [1, 2]),
    "a node with two parents": ensemble_of([1, 2, 0], [2, 2, 0], [2]),
    "a child that is not there": ensemble_of([1, 0, 0], [9, 0, 0], [1, 2]),
    "a node twice": ensemble_of([1, 0, 0], [2, 0, 0], [1, 2], nodes_nodeids=[0, 1, 1]),
    "fewer children than nodes": ensemble_of([1, 0, 0], [2], [1, 2]),
    "many weights at a leaf": ensemble_of(
        [1, 0, 0], [2, 0, 0], [1, 2], target_treeids=[0] * 9, target_nodeids=[1] * 9, target_ids=[0] * 9
    ),
    "a target beyond the others": ensemble_of(
        [1, 0, 0], [2, 0, 0], [1, 2], target_treeids=[0], target_nodeids=[1], target_ids=[10**9]
    ),
    "a long way down": chain(100_001),
}


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
