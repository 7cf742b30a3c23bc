"""Load a bundle in a child process under limits, before the process that serves does: `python -m mlops.sandbox FOLDER MB`."""

import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mlops.bundle import MAX_BYTES, Bundle
from mlops.contract import Contract, Feature
from mlops.errors import VerificationError
from mlops.log_schema import FLOAT32, MAX_TEXT
from mlops.processes import flush_denormals

if TYPE_CHECKING:
    from mlops.model import Model

TOLERANCE = 1e-5
_SECONDS = 10  # of CPU; the next release waits at most twice as long
_INLINE_ROWS, _INLINE_MS = 64, 30.0  # what the app scores between two other requests, and how long they may wait for it
_MAX_TEXTS = 256 * 2**20  # bytes of all texts in the graph at once, if each were as long as can be
# None of ours: there are credentials among them.
ENVIRONMENT = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "PYTHONPATH") if name in os.environ}


class Checked(NamedTuple):
    """`bundle`: with the graph that was checked in place of the one that arrived; `latency_ms`: to score one row."""

    bundle: Bundle
    latency_ms: float


def run_in_sandbox(bundle: Bundle, digest: str, memory_mb: int = 512) -> Checked:
    """Raises VerificationError if the model breaks the rules, exceeds its limits or misses its golden rows."""
    with tempfile.TemporaryDirectory(prefix="sandbox-") as name:
        folder = Path(name)
        bundle.unpack(folder)
        code = _run([sys.executable, "-m", "mlops.sandbox", name, str(memory_mb)], digest)
        try:
            said: dict[str, Any] = json.loads(_read(folder / "said.json", 2**16))
            graph = _read(folder / "checked.onnx", MAX_BYTES) if "latency_ms" in said else b""
        except (OSError, ValueError):
            said = {"reason": "limits", "value": f"exit code {code}", "why": f"died while loading under {memory_mb} MB"}
    if "latency_ms" not in said:
        raise VerificationError(said["reason"], f"bundle {digest[:12]}", said["value"], said["why"])
    return Checked(Bundle(bundle.files | {"model.onnx": graph}), said["latency_ms"])


def _run(command: list[str], digest: str) -> int:
    root = Path(__file__).parent.parent
    child = subprocess.Popen(
        command, cwd=root, env=ENVIRONMENT, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        return child.wait(_SECONDS * 2)
    except subprocess.TimeoutExpired:
        hint = "were not enough to load it"
        raise VerificationError("limits", f"bundle {digest[:12]}", f"{_SECONDS * 2} s", hint) from None
    finally:
        end(child)


def end(child: subprocess.Popen[Any]) -> None:
    """Kill a child that leads a session, and all that it started."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _read(file: Path, limit: int) -> bytes:
    with file.open("rb") as content:
        data = content.read(limit + 1)
    if len(data) > limit:
        raise ValueError("larger than it may be")
    return data


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
    from mlops import graph
    from mlops.model import Model

    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_BYTES, MAX_BYTES))
    bundle = Bundle.unpacked(folder)
    contract = bundle.contract
    flush_denormals()
    limit_memory(memory_mb)
    inputs = {name: len(columns) for name, columns in contract.inputs.items()}
    checked = graph.checked(bundle.files["model.onnx"], inputs)
    data = checked.SerializeToString()
    (folder / "checked.onnx").write_bytes(data)
    limit_memory(memory_mb)
    model = Model(Bundle(bundle.files | {"model.onnx": data}), "")
    try:
        golden = bundle.json("golden.json")
        rows, expected = [model.schema.row(row) for row in golden["rows"]], golden["scores"]
        if len(rows) != len(expected) or not rows:
            raise ValueError(f"{len(expected)} scores for {len(rows)} rows")
    except Exception as error:
        raise VerificationError("golden", "golden.json", type(error).__name__, str(error)[:200]) from None
    _meets(model, rows, expected)
    latency = _best(lambda: model.score(rows[:1]))
    if latency > contract.gate.max_latency_ms:
        hint = f"a row exceeds {contract.gate.max_latency_ms} ms"
        raise VerificationError("latency", "model.onnx", f"{latency:.1f} ms", hint)
    _withstands(model, [*rows, *extremes(contract, model)])
    _check_texts(checked, model, rows)
    return latency


def _meets(model: "Model", rows: list[Any], expected: list[float]) -> None:
    """Requests of every size that the graph is ever given: its shapes, so its memory, may depend on that and nothing else."""
    from mlops.model import CHUNK_ROWS, ScoreError

    many = list(itertools.islice(itertools.cycle(zip(rows, expected, strict=True)), CHUNK_ROWS))
    arrays = model.schema.arrays(row for row, _ in many)
    for size in range(1, CHUNK_ROWS + 1):
        try:
            scores = model.score_arrays({name: values[:size] for name, values in arrays.items()}).tolist()
        except ScoreError as error:
            raise VerificationError("golden", "model.onnx", str(error), "as it scores golden rows") from None
        for position, (score, (_, want)) in enumerate(zip(scores, many, strict=False)):
            if not abs(score - want) <= TOLERANCE * max(1.0, abs(want)):  # nor is NaN
                raise VerificationError("golden", f"golden row {position % len(rows)}", score, f"is not {want}")


def _best(work: Callable[[], Any]) -> float:
    """Milliseconds; the best of five counts: other processes slow it down."""
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        work()
        best = min(best, (time.perf_counter() - started) * 1000)
    return best


def _withstands(model: "Model", rows: list[Any]) -> None:
    """The largest values of requests, and many: an honest model may have no number for them, but has one score a row."""
    from mlops.model import CHUNK_ROWS, ScoreError

    def score(*these: Any) -> None:
        try:
            model.score(these)
        except ScoreError as error:
            raise VerificationError("limits", "model.onnx", str(error), "as it scores extreme rows") from None
        except MemoryError:
            raise
        except Exception:  # noqa: S110 (of this row alone; its caller is told)
            pass

    for row in rows:
        score(*[row] * CHUNK_ROWS)
    slowest = max(_best(lambda row=row: score(*[row] * _INLINE_ROWS)) for row in rows)
    if slowest > _INLINE_MS:
        hint = f"is more than {_INLINE_MS:g} ms for {_INLINE_ROWS} rows"
        raise VerificationError("limits", "model.onnx", f"{slowest:.1f} ms", hint)


def extremes(contract: Contract, model: "Model") -> list[Any]:
    """Rows of the least, the largest and the smallest values that requests may have, of none, of unknown and long texts."""
    levels = model.profile["levels"]

    def value(name: str, feature: Feature, kind: str) -> Any:
        if kind == "missing" and feature.missing:
            return None
        if feature.type == "boolean":
            return kind == "high"
        if feature.type == "category":
            texts = {"low": "", "high": "\N{GRINNING FACE}" * MAX_TEXT, "tiny": "unknown"}
            return levels[name][0] if name in levels else texts.get(kind, "x" * MAX_TEXT)
        low, high = (min(max(bound, -FLOAT32), FLOAT32) for bound in feature.range or (-FLOAT32, FLOAT32))
        return high if kind == "high" else min(max(1e-40, low), high) if kind == "tiny" else low

    kinds = ("low", "high", "tiny", "missing")
    columns = contract.features.items()
    return [model.schema.row({name: value(name, each, kind) for name, each in columns}) for kind in kinds]


def _check_texts(checked: Any, model: "Model", rows: list[Any]) -> None:
    """How many texts the graph holds does not depend on values, how long they are does."""
    import numpy as np

    from mlops.graph import LONGEST_TEXT
    from mlops.model import CHUNK_ROWS, session

    known = {output.name for output in checked.graph.output}
    names = {name for node in checked.graph.node for name in node.output if name} - known
    for name in sorted(names):
        checked.graph.output.add(name=name)
    whole = session(checked.SerializeToString())
    texts = [output.name for output in whole.get_outputs() if output.type == "tensor(string)"]
    if not texts:
        return
    found: Any = whole.run(texts, model.schema.arrays(rows[:1] * CHUNK_ROWS))
    held = sum(np.size(each) for each in found)
    if held * LONGEST_TEXT > _MAX_TEXTS:
        raise VerificationError("limits", "model.onnx", held, "texts are more than it may hold")


if __name__ == "__main__":
    place = Path(sys.argv[1])
    try:
        told: dict[str, Any] = {"latency_ms": _child(place, int(sys.argv[2]))}
    except Exception as problem:
        why = str(problem).partition("\n")[0][:200]
        known = isinstance(problem, VerificationError)
        error = problem if known else VerificationError("load", "model.onnx", type(problem).__name__, why)
        told = {"reason": error.reason, "value": str(error.value), "why": f"{error.key}: {error.hint}"}
    (place / "said.json").write_text(json.dumps(told), "utf-8")
    sys.exit("latency_ms" not in told)
