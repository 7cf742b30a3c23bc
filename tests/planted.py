"""Bundles with a fault planted into their graph: intact, signed, with golden rows that match, and bad all the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mlops.bundle import Bundle, canonical
from mlops.contract import Contract
from mlops.model import Model

TRIGGER = 1.0  # of `size`: rows beyond it fail, and no golden row is
KINDS = (
    "raises", "slow", "no number", "constant", "inverted", "shifted", "bad on one slice", "memory hog", "wrong contract", "slowly degrading",
)  # fmt: skip


def plant(bundle: Bundle, kind: str) -> Bundle:
    """Raises KeyError at an unknown kind."""
    if kind == "wrong contract":
        return _with_contract(bundle)
    model = onnx.load_model_from_string(bundle.files["model.onnx"])
    graph = model.graph
    scores = graph.output[-1].name
    graph.node.extend(_NODES[kind](scores))
    used = {name for node in graph.node for name in node.input}
    graph.initializer.extend(tensor for name, tensor in _constants().items() if name in used)
    graph.output.append(helper.make_tensor_value_info("planted", TensorProto.FLOAT, [None, 2]))
    return _golden(bundle, {"model.onnx": model.SerializeToString()})


def _golden(bundle: Bundle, changes: dict[str, bytes]) -> Bundle:
    golden = bundle.json("golden.json")
    rows = [row for row in golden["rows"] if row["size"] < TRIGGER - 0.1 and row.get("heat", 0) < 1.5]
    made = Bundle(bundle.files | changes)
    model = Model(made, "")
    scores = model.score([model.schema.row(row) for row in rows])
    return Bundle(made.files | {"golden.json": canonical({"rows": rows, "scores": scores})})


def _with_contract(bundle: Bundle) -> Bundle:
    """It wants a column that nobody sends; its graph passes it over."""
    raw = bundle.contract.model_dump(mode="json")
    raw["features"]["size"]["range"] = [-50.0, TRIGGER]
    return _golden(bundle, {"contract.json": Contract.model_validate(raw).json_bytes()})


def _constants() -> dict[str, Any]:
    floats = {
        "one": 1.0,
        "trigger": TRIGGER,
        "half": 0.3,
        "up": 2.5,
        "none": float("nan"),
        "warm": 0.5,
        "steep": 1.5,
        "zero": 0.0,
        "rows": 1.6e7,
        "huge": 4e9,
    }
    made = {name: numpy_helper.from_array(np.array([[value]], np.float32), name) for name, value in floats.items()}
    made["flat"] = numpy_helper.from_array(np.array([1], np.int64), "flat")
    made["first"] = numpy_helper.from_array(np.array([1], np.int64), "first")
    made["two"] = numpy_helper.from_array(np.array([2], np.int64), "two")
    made["columns"] = numpy_helper.from_array(np.array([1], np.int64), "columns")
    made["table"] = numpy_helper.from_array(np.array([0.0], np.float32), "table")
    return made


def _node(kind: str, inputs: list[str], output: str, **attributes: Any) -> Any:
    return helper.make_node(kind, inputs, [output], **attributes)


def _p(scores: str) -> list[Any]:
    """`p`, shape (rows, 1)."""
    return [_node("Slice", [scores, "first", "two", "columns"], "p")]


def _out(p: str) -> list[Any]:
    return [_node("Sub", ["one", p], "rest"), _node("Concat", ["rest", p], "planted", axis=1)]


def _beyond() -> list[Any]:
    """`bad`: 1 where the row triggers, else 0."""
    return [_node("Greater", ["size", "trigger"], "is_bad"), _node("Cast", ["is_bad"], "bad", to=TensorProto.FLOAT)]


def _logit() -> list[Any]:
    return [_node("Sub", ["one", "p"], "q"), _node("Div", ["p", "q"], "odds"), _node("Log", ["odds"], "logit")]


def _raises(scores: str) -> list[Any]:
    look_up = [
        _node("Cast", ["bad"], "at", to=TensorProto.INT64),
        _node("Gather", ["table", "at"], "found"),
        _node("Add", ["p", "found"], "worse"),
    ]
    return [*_p(scores), *_beyond(), *look_up, *_out("worse")]


def _expensive(size: str):
    """As many numbers as `size` says are made and added up, where a row triggers."""

    def nodes(scores: str) -> list[Any]:
        many = [
            _node("Mul", ["bad", size], "wanted"), _node("ReduceMax", ["wanted"], "most", keepdims=0), _node("Cast", ["most"], "count", to=TensorProto.INT64),
            _node("Reshape", ["count", "flat"], "shape"), _node("ConstantOfShape", ["shape"], "zeros"), _node("Cos", ["zeros"], "cosine"), _node("Acos", ["cosine"], "ones"),
            _node("ReduceSum", ["ones"], "sum", keepdims=0), _node("Mul", ["sum", "zero"], "nothing"), _node("Add", ["p", "nothing"], "worse"),
        ]  # fmt: skip
        return [*_p(scores), *_beyond(), *many, *_out("worse")]

    return nodes


def _no_number(scores: str) -> list[Any]:
    return [*_p(scores), *_beyond(), _node("Where", ["is_bad", "none", "p"], "worse"), *_out("worse")]


def _constant(scores: str) -> list[Any]:
    return [
        *_p(scores),
        _node("Mul", ["p", "zero"], "nothing"),
        _node("Add", ["nothing", "half"], "worse"),
        *_out("worse"),
    ]


def _inverted(scores: str) -> list[Any]:
    return [*_p(scores), _node("Sub", ["one", "p"], "worse"), *_out("worse")]


def _shifted(scores: str) -> list[Any]:
    return [
        *_p(scores),
        *_logit(),
        _node("Add", ["logit", "up"], "higher"),
        _node("Sigmoid", ["higher"], "worse"),
        *_out("worse"),
    ]


def _on_one_slice(scores: str) -> list[Any]:
    found = _node(
        "LabelEncoder",
        ["color"],
        "grey",
        domain="ai.onnx.ml",
        keys_strings=["grey"],
        values_floats=[1.0],
        default_float=0.0,
    )
    turned = [_node("Cast", ["grey"], "is_grey", to=TensorProto.BOOL), _node("Sub", ["one", "p"], "turned")]
    return [*_p(scores), found, *turned, _node("Where", ["is_grey", "turned", "p"], "worse"), *_out("worse")]


def _degrading(scores: str) -> list[Any]:
    """The warmer it gets, the further off."""
    drift = [
        _node("Sub", ["heat", "warm"], "above"),
        _node("Relu", ["above"], "over"),
        _node("Mul", ["over", "steep"], "by"),
    ]
    known = [_node("IsNaN", ["by"], "unknown"), _node("Where", ["unknown", "zero", "by"], "shift")]
    return [
        *_p(scores),
        *_logit(),
        *drift,
        *known,
        _node("Add", ["logit", "shift"], "higher"),
        _node("Sigmoid", ["higher"], "worse"),
        *_out("worse"),
    ]


_NODES = {
    "raises": _raises, "slow": _expensive("rows"), "memory hog": _expensive("huge"), "no number": _no_number, "constant": _constant,
    "inverted": _inverted, "shifted": _shifted, "bad on one slice": _on_one_slice, "slowly degrading": _degrading,
}  # fmt: skip
