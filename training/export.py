from typing import Any, cast

import numpy as np
from onnx import TensorProto, helper
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.pipeline import Pipeline

from mlops.contract import Contract
from mlops.errors import UserError

_OPSET = {"": 18, "ai.onnx.ml": 3}


def export(pipeline: Pipeline, contract: Contract) -> bytes:
    """The fitted pipeline as one graph, from request columns to score."""
    _float32_thresholds(pipeline)
    kinds = {"category": StringTensorType}
    types = [(name, kinds.get(each.type, FloatTensorType)([None, 1])) for name, each in contract.features.items()]
    options: dict[Any, Any] = {id(pipeline): {"zipmap": False}} if contract.task == "binary" else {}
    try:
        graph = to_onnx(pipeline, initial_types=cast(Any, types), options=options, target_opset=_OPSET)
    except Exception as error:
        step = type(pipeline.steps[-1][1]).__name__
        raise UserError("features.py", step, f"has no ONNX form: {str(error).splitlines()[0][:200]}") from None
    return _packed(graph, contract).SerializeToString()


def _packed(graph: Any, contract: Contract) -> Any:
    """Two inputs, `numbers` and `categories`, split into columns inside: one tensor a column costs more than the model."""
    kinds = {"numbers": TensorProto.FLOAT, "categories": TensorProto.STRING}
    inside, nodes = graph.graph, list(graph.graph.node)
    # The exporter renames a column that is called like an output of its own.
    tensors = dict(zip(contract.features, [each.name for each in inside.input], strict=True))
    del inside.node[:], inside.input[:]
    for name, columns in contract.inputs.items():
        inside.input.append(helper.make_tensor_value_info(name, kinds[name], [None, len(columns)]))
        parts = [tensors[column] for column in columns]
        inside.node.append(helper.make_node("Split", [name], parts, name=name, axis=1, num_outputs=len(columns)))
    inside.node.extend(nodes)
    graph.opset_import.sort(key=lambda opset: opset.domain)  # the exporter keeps a set: each process had its own order
    return graph


def _float32_thresholds(pipeline: Pipeline) -> None:
    """Round the thresholds of boosted trees down to float32, as the graph will hold them; of other trees the exporter does.

    For a float32 `x`, `x <= t` is the same for both; rounding to the nearest, as the exporter does, sends a value
    just above `t` the other way. Midpoints of values on a grid (44.1 and 44.3 °F) meet a third one on it often.
    """
    for trees in getattr(pipeline.steps[-1][1], "_predictors", []):
        for tree in trees:
            exact = tree.nodes["num_threshold"]
            near = exact.astype(np.float32)
            tree.nodes["num_threshold"] = np.where(near > exact, np.nextafter(near, np.float32(-np.inf)), near)


def parity(exported: np.ndarray, original: np.ndarray) -> float:
    """The largest difference of two scorings of the same rows, relative where scores exceed 1."""
    return float(np.max(np.abs(exported - original) / np.maximum(1.0, np.abs(original)), initial=0.0))
