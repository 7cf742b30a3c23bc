"""Try a bundle in a child process under limits, before the process that serves touches it: `python -m mlops.probe FOLDER`."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlops.bundle import Bundle
from mlops.errors import Refused

TOLERANCE = 1e-5
_SECONDS = 10  # of CPU; a release that follows waits for no more than twice that
_DOMAINS = {"", "ai.onnx", "ai.onnx.ml"}
_FORBIDDEN = {"Loop", "Scan", "If", "SequenceMap"}


def probe(bundle: Bundle, digest: str, memory_mb: int = 512) -> None:
    """Raises Refused if the model breaks the rules, exceeds its limits or misses its golden rows."""
    with tempfile.TemporaryDirectory(prefix="probe-") as folder:
        bundle.unpack(Path(folder))
        command = [sys.executable, "-m", "mlops.probe", folder, str(memory_mb)]
        try:
            child = subprocess.run(command, capture_output=True, timeout=_SECONDS * 2, cwd=Path(__file__).parent.parent)
        except subprocess.TimeoutExpired:
            raise Refused("limits", f"bundle {digest[:12]}", f"{_SECONDS * 2} s", "were not enough to load it") from None
    if child.returncode == 0:
        return
    try:
        refusal = json.loads(child.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        refusal = {"reason": "limits", "value": f"exit code {child.returncode}", "why": f"died while loading under {memory_mb} MB"}
    raise Refused(refusal["reason"], f"bundle {digest[:12]}", refusal["value"], refusal["why"])


def _check_graph(data: bytes, inputs: dict[str, int]) -> None:
    import onnx

    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:
        raise Refused("onnx", "model.onnx", type(error).__name__, "is not an ONNX model") from None
    if foreign := {opset.domain for opset in model.opset_import} - _DOMAINS:
        raise Refused("operators", "model.onnx", sorted(foreign)[0], "is not a standard operator domain")
    if model.functions:
        raise Refused("operators", "model.onnx", model.functions[0].name, "is a function of its own")
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        for node in graph.node:
            if node.domain not in _DOMAINS or node.op_type in _FORBIDDEN:
                raise Refused("operators", "model.onnx", f"{node.domain}{node.op_type}", "is not an allowed operator")
            sparse = [a.sparse_tensor for a in node.attribute] + [s for a in node.attribute for s in a.sparse_tensors]
            tensors = [a.t for a in node.attribute] + [t for a in node.attribute for t in a.tensors] + _dense(sparse)
            graphs += [a.g for a in node.attribute if a.HasField("g")] + [g for a in node.attribute for g in a.graphs]
            _no_external(tensors)
        _no_external([*graph.initializer, *_dense(graph.sparse_initializer)])
    found = {i.name: i.type.tensor_type.shape.dim[-1].dim_value if i.type.tensor_type.shape.dim else 0 for i in model.graph.input}
    if found != inputs:
        raise Refused("contract", "model.onnx", str(found), f"are the inputs of the graph; the contract has {inputs}")


def _dense(sparse: Iterable[Any]) -> list[Any]:
    return [tensor for each in sparse for tensor in (each.values, each.indices)]


def _no_external(tensors) -> None:
    if any(tensor.data_location == tensor.EXTERNAL or tensor.external_data for tensor in tensors):
        raise Refused("operators", "model.onnx", "external data", "is not allowed: all bytes are in the bundle")


def limit_memory(more_mb: int) -> None:
    """What the interpreter and its libraries take is theirs; the limit is what the model adds."""
    if sys.platform != "linux":
        return
    status = Path("/proc/self/status").read_text()
    used = int(next(line for line in status.splitlines() if line.startswith("VmData")).split()[1]) * 1024
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    wanted = used + more_mb * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _child(folder: Path, memory_mb: int) -> None:
    from mlops.bundle import MAX_ROWS
    from mlops.model import Model

    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
    bundle = Bundle.unpacked(folder)
    contract, golden = bundle.contract, bundle.json("golden.json")
    limit_memory(memory_mb)
    _check_graph(bundle.files["model.onnx"], {name: len(columns) for name, columns in contract.inputs.items()})
    limit_memory(memory_mb)
    model = Model(bundle, "")
    rows = [model.schema.row(row) for row in golden["rows"]]
    one, latency = model.score(rows[:1]), float("inf")
    for _ in range(5):  # the best counts: a slow moment is the machine's
        started = time.perf_counter()
        model.score(rows[:1])
        latency = min(latency, (time.perf_counter() - started) * 1000)
    # The largest request that the API takes: what a few rows cost does not tell.
    times = MAX_ROWS // len(rows)
    many = model.score(rows * times)
    expected = golden["scores"] * times + golden["scores"][:1]
    if len(many) + len(one) != len(expected):
        raise Refused("golden", "model.onnx", len(many), f"scores for {len(rows) * times} rows")
    for position, (score, want) in enumerate(zip([*many, *one], expected, strict=True)):
        if not abs(score - want) <= TOLERANCE * max(1.0, abs(want)):  # nor is NaN
            raise Refused("golden", f"golden row {position % len(rows)}", score, f"is not {want}")
    if latency > contract.gate.max_latency_ms:
        raise Refused("latency", "model.onnx", f"{latency:.1f} ms", f"a row is more than {contract.gate.max_latency_ms} ms")


if __name__ == "__main__":
    try:
        _child(Path(sys.argv[1]), int(sys.argv[2]))
    except Exception as error:
        why = str(error).partition("\n")[0][:200]
        refused = error if isinstance(error, Refused) else Refused("load", "model.onnx", type(error).__name__, why)
        print(json.dumps({"reason": refused.reason, "value": str(refused.value), "why": f"{refused.key}: {refused.way_out}"}))
        sys.exit(1)
