"""Which graphs may be loaded. They are what exporters make of models, and how much a graph takes depends on the number of
rows alone, never on a value in them: what the sandbox saw of it is what callers will see."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx

from mlops.errors import VerificationError

_PLAIN = """
Abs Acos Add And ArgMax ArgMin Asin Atan Cast Ceil Clip Concat Constant Cos Div Equal Erf Exp Flatten Floor Gather
GatherElements Gemm Greater GreaterOrEqual Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log LogSoftmax MatMul Max Mean
Min Mod Mul Neg Not Or Pow Reciprocal Relu Round Shape Sigmoid Sign Sin Softmax Softplus Sqrt Sub Sum Tan Tanh Transpose
Where Xor
"""
_SHAPED = """
CumSum ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare
Reshape Slice Split Squeeze TopK Unsqueeze
"""  # by their second input
_LEARNED = """
ArrayFeatureExtractor Binarizer FeatureVectorizer Imputer LabelEncoder LinearClassifier LinearRegressor Normalizer
OneHotEncoder SVMClassifier SVMRegressor Scaler TreeEnsembleClassifier TreeEnsembleRegressor
"""
# By domain, the operators, and from which input on they tell the shape of the output.
OPERATORS: dict[str, dict[str, int | None]] = {
    "": dict.fromkeys(_PLAIN.split()) | dict.fromkeys(_SHAPED.split(), 1) | {"ConstantOfShape": 0},
    "ai.onnx.ml": dict.fromkeys(_LEARNED.split()),
}
LONGEST_TEXT = 1000  # bytes of a text in the graph
_MAX_STEPS = 100_000  # from the roots of all trees to their deepest leaves
_MAX_CATEGORIES = 50_000  # that one-hot encoders look for: texts can be made to meet in one slot of their table
_CHILDREN = ("nodes_truenodeids", "nodes_falsenodeids")


def checked(data: bytes, inputs: dict[str, int]) -> onnx.ModelProto:
    """The graph made anew of what was checked, so that nothing else is loaded. `inputs`: the columns of each. Raises
    VerificationError."""
    try:
        read = onnx.load_model_from_string(data)
    except Exception as error:
        raise VerificationError("onnx", "model.onnx", type(error).__name__, "is not an ONNX model") from None
    read.DiscardUnknownFields()
    if foreign := {each.domain for each in read.opset_import} - {*OPERATORS, "ai.onnx"}:
        raise _refusal(min(foreign), "is not a standard operator domain")
    if read.functions:
        raise _refusal(read.functions[0].name, "is a custom function")
    graph = read.graph
    if graph.sparse_initializer:
        raise _refusal("a sparse tensor", "is not allowed")
    for tensor in graph.initializer:
        _check_tensor(tensor)
    _check_nodes(graph)
    shapes = {i.name: i.type.tensor_type.shape.dim for i in graph.input}
    found = {name: shape[-1].dim_value if shape else 0 for name, shape in shapes.items()}
    if found != inputs:
        hint = f"are the graph's inputs; the contract has {inputs}"
        raise VerificationError("contract", "model.onnx", str(found), hint)
    return onnx.ModelProto(ir_version=read.ir_version, opset_import=read.opset_import, graph=graph)


def _refusal(value: object, why: str) -> VerificationError:
    return VerificationError("operators", "model.onnx", str(value)[:80], why)


def _check_nodes(graph: onnx.GraphProto) -> None:
    fixed = {"", *(tensor.name for tensor in graph.initializer)}  # names of what depends on no value of a row
    made = [
        *(each.name for part in (graph.input, graph.initializer) for each in part),
        *(name for node in graph.node for name in node.output if name),
    ]
    if len(set(made)) != len(made):
        raise _refusal("a name", "is given twice")
    steps = categories = 0
    for node in graph.node:
        domain = "" if node.domain == "ai.onnx" else node.domain
        if node.op_type not in OPERATORS.get(domain, {}):
            raise _refusal(f"{node.domain}{node.op_type}", "is not an allowed operator")
        _check_attributes(node)
        shaping = OPERATORS[domain][node.op_type]
        if shaping is not None and not fixed.issuperset(node.input[shaping:]):
            raise _refusal(node.op_type, "has a shape that depends on a value")
        if node.op_type == "Shape" or fixed.issuperset(node.input):
            fixed.update(node.output)
        if node.op_type.startswith("TreeEnsemble"):
            steps += _steps(node)
        if node.op_type == "OneHotEncoder":
            categories += sum(len(each.strings) + len(each.ints) for each in node.attribute)
        if steps > _MAX_STEPS or categories > _MAX_CATEGORIES:
            raise _refusal(node.op_type, f"has more than {_MAX_STEPS} steps or {_MAX_CATEGORIES} categories")


def _check_attributes(node: onnx.NodeProto) -> None:
    for each in node.attribute:
        if each.HasField("g") or each.graphs:
            raise _refusal(node.op_type, "has a graph inside")
        if each.HasField("sparse_tensor") or each.sparse_tensors or each.ref_attr_name:
            raise _refusal(node.op_type, "has a sparse tensor or an attribute of elsewhere")
        for tensor in [each.t, *each.tensors]:
            _check_tensor(tensor)
        _check_texts([each.s, *each.strings])


def _check_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_location == tensor.EXTERNAL or tensor.external_data:
        raise _refusal("external data", "is not allowed: a bundle is whole")
    _check_texts(tensor.string_data)


def _check_texts(texts: Any) -> None:
    if any(len(text) > LONGEST_TEXT for text in texts):
        raise _refusal("a text", f"has more than {LONGEST_TEXT} bytes")


def _steps(node: onnx.NodeProto) -> int:
    """From the roots of its trees to their deepest leaves, in sum. Raises VerificationError if they are no trees."""
    try:
        return sum(_widths(node))
    except (KeyError, ValueError, IndexError):
        raise _refusal(node.op_type, "is not made of trees") from None


def _widths(node: onnx.NodeProto) -> Iterator[int]:
    """How many trees reach each depth. Raises ValueError, KeyError or IndexError."""
    told = {each.name: np.array(each.ints) for each in node.attribute if each.ints}
    modes = next(list(each.strings) for each in node.attribute if each.name == "nodes_modes")
    trees = told["nodes_treeids"]
    places = {
        name: place for place, name in enumerate(zip(trees.tolist(), told["nodes_nodeids"].tolist(), strict=True))
    }
    inner = np.array([mode != b"LEAF" for mode in modes])
    if len(places) != len(trees) or len(inner) != len(trees):
        raise ValueError
    below = np.full((len(trees), 2), -1)
    for side, name in enumerate(_CHILDREN):
        pairs = zip(trees[inner].tolist(), told[name][inner].tolist(), strict=True)
        below[inner, side] = [places[pair] for pair in pairs]
    parents = np.bincount(below[inner].ravel(), minlength=len(trees))
    level = np.flatnonzero(parents == 0)
    if parents.max(initial=0) > 1 or len(level) != len(set(trees.tolist())):
        raise ValueError  # two ways to a node, or a tree without its one root
    _check_leaves(node, told, places)
    seen = 0
    while len(level):
        seen += len(level)
        yield len(np.unique(trees[level]))
        level = below[level[inner[level]]].ravel()
    if seen != len(trees):
        raise ValueError  # the rest goes round in circles


def _check_leaves(node: onnx.NodeProto, told: dict[str, np.ndarray], places: dict[tuple[int, int], int]) -> None:
    """Each leaf adds to a class or target once at most: more would be work that a value asks for. Raises ValueError."""
    kind = "class" if node.op_type.endswith("Classifier") else "target"
    nothing = np.array([], int)
    trees, nodes, ids = (told.get(f"{kind}_{what}", nothing).tolist() for what in ("treeids", "nodeids", "ids"))
    weights = list(zip(trees, nodes, ids, strict=True))
    if len(set(weights)) != len(weights) or set(ids) - {0, 1} or not all(w[:2] in places for w in weights):
        raise ValueError
