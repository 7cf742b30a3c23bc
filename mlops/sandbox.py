"""Load a bundle in a child process under limits, before the process that serves does: `python -m mlops.sandbox FOLDER MB`."""

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
from mlops.errors import VerificationError

TOLERANCE = 1e-5
_SECONDS = 10  # of CPU; the next release waits at most twice as long
_DOMAINS = {"", "ai.onnx", "ai.onnx.ml"}
_FORBIDDEN = {"Loop", "Scan", "If", "SequenceMap"}


def run_in_sandbox(bundle: Bundle, digest: str, memory_mb: int = 512) -> float:
    """Milliseconds to score one row. Raises VerificationError if the model breaks the rules, exceeds its limits or misses
    its golden rows."""
    with tempfile.TemporaryDirectory(prefix="sandbox-") as folder:
        bundle.unpack(Path(folder))
        command = [sys.executable, "-m", "mlops.sandbox", folder, str(memory_mb)]
        try:
            child = subprocess.run(command, capture_output=True, timeout=_SECONDS * 2, cwd=Path(__file__).parent.parent)
        except subprocess.TimeoutExpired:
            hint = "were not enough to load it"
            raise VerificationError("limits", f"bundle {digest[:12]}", f"{_SECONDS * 2} s", hint) from None
    try:
        said: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        value, why = f"exit code {child.returncode}", f"died while loading under {memory_mb} MB"
        said = {"reason": "limits", "value": value, "why": why}
    if "latency_ms" not in said:
        raise VerificationError(said["reason"], f"bundle {digest[:12]}", said["value"], said["why"])
    return said["latency_ms"]


def _check_graph(data: bytes, inputs: dict[str, int]) -> None:
    import onnx

    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:
        raise VerificationError("onnx", "model.onnx", type(error).__name__, "is not an ONNX model") from None
    if foreign := {opset.domain for opset in model.opset_import} - _DOMAINS:
        raise VerificationError("operators", "model.onnx", sorted(foreign)[0], "is not a standard operator domain")
    if model.functions:
        raise VerificationError("operators", "model.onnx", model.functions[0].name, "is a custom function")
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        for node in graph.node:
            if node.domain not in _DOMAINS or node.op_type in _FORBIDDEN:
                operator = f"{node.domain}{node.op_type}"
                raise VerificationError("operators", "model.onnx", operator, "is not an allowed operator")
            sparse = [a.sparse_tensor for a in node.attribute] + [s for a in node.attribute for s in a.sparse_tensors]
            tensors = [a.t for a in node.attribute] + [t for a in node.attribute for t in a.tensors] + _dense(sparse)
            graphs += [a.g for a in node.attribute if a.HasField("g")] + [g for a in node.attribute for g in a.graphs]
            _no_external(tensors)
        _no_external([*graph.initializer, *_dense(graph.sparse_initializer)])
    shapes = {i.name: i.type.tensor_type.shape.dim for i in model.graph.input}
    found = {name: shape[-1].dim_value if shape else 0 for name, shape in shapes.items()}
    if found != inputs:
        hint = f"are the graph's inputs; the contract has {inputs}"
        raise VerificationError("contract", "model.onnx", str(found), hint)


def _dense(sparse: Iterable[Any]) -> list[Any]:
    return [tensor for each in sparse for tensor in (each.values, each.indices)]


def _no_external(tensors) -> None:
    if any(tensor.data_location == tensor.EXTERNAL or tensor.external_data for tensor in tensors):
        raise VerificationError("operators", "model.onnx", "external data", "is not allowed: a bundle is whole")


def limit_memory(more_mb: int) -> None:
    """Limit what the model adds to the memory that the interpreter and its libraries take."""
    if sys.platform != "linux":
        return
    status = Path("/proc/self/status").read_text("utf-8")
    used = int(next(line for line in status.splitlines() if line.startswith("VmData")).split()[1]) * 1024
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    wanted = used + more_mb * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _child(folder: Path, memory_mb: int) -> float:
    from mlops.bundle import MAX_ROWS
    from mlops.model import Model

    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
    bundle = Bundle.unpacked(folder)
    contract = bundle.contract
    limit_memory(memory_mb)
    _check_graph(bundle.files["model.onnx"], {name: len(columns) for name, columns in contract.inputs.items()})
    limit_memory(memory_mb)
    model = Model(bundle, "")
    try:
        golden = bundle.json("golden.json")
        rows, expected = [model.schema.row(row) for row in golden["rows"]], golden["scores"]
        # The largest request that the API accepts: memory need not be proportional to rows.
        times = MAX_ROWS // len(rows)
    except Exception as error:
        raise VerificationError("golden", "golden.json", type(error).__name__, str(error)[:200]) from None
    one, latency = model.score(rows[:1]), float("inf")
    for _ in range(5):  # the best counts: other processes slow it down
        started = time.perf_counter()
        model.score(rows[:1])
        latency = min(latency, (time.perf_counter() - started) * 1000)
    many = model.score(rows * times)
    expected = expected * times + expected[:1]
    if len(many) + len(one) != len(expected):
        raise VerificationError("golden", "model.onnx", len(many), f"scores for {len(rows) * times} rows")
    for position, (score, want) in enumerate(zip([*many, *one], expected, strict=True)):
        if not abs(score - want) <= TOLERANCE * max(1.0, abs(want)):  # nor is NaN
            raise VerificationError("golden", f"golden row {position % len(rows)}", score, f"is not {want}")
    if latency > contract.gate.max_latency_ms:
        hint = f"a row exceeds {contract.gate.max_latency_ms} ms"
        raise VerificationError("latency", "model.onnx", f"{latency:.1f} ms", hint)
    return latency


if __name__ == "__main__":
    try:
        print(json.dumps({"latency_ms": _child(Path(sys.argv[1]), int(sys.argv[2]))}))
    except Exception as problem:
        why = str(problem).partition("\n")[0][:200]
        known = isinstance(problem, VerificationError)
        error = problem if known else VerificationError("load", "model.onnx", type(problem).__name__, why)
        print(json.dumps({"reason": error.reason, "value": str(error.value), "why": f"{error.key}: {error.hint}"}))
        sys.exit(1)
