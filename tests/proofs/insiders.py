"""Bundles of an insider who can have anything signed: each is refused with a reason, or serves within its limits, whatever
its callers send, while everybody else is answered.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import onnxruntime
import psutil
from onnx import TensorProto, helper, numpy_helper

from mlops.bundle import Bundle
from tests import synthetic
from tests.proofs.hostile import Bucket
from tests.service import Service, environment

MEMORY_MB, SECONDS = 150, 5.0  # that a bundle may take in the app beyond what it had, and that an honest caller waits


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


def _added(*nodes: Any, **constants: Any) -> Callable[[Bundle], Bundle]:
    return lambda good: changed(good, *nodes, **constants)


def _edited(change: Callable[[onnx.ModelProto], object]) -> Callable[[Bundle], Bundle]:
    def edit(good: Bundle) -> Bundle:
        model = onnx.load_model_from_string(good.files["model.onnx"])
        change(model)
        return Bundle(good.files | {"model.onnx": model.SerializeToString()})

    return edit


def _bytes(change: Callable[[bytes], bytes]) -> Callable[[Bundle], Bundle]:
    return lambda good: Bundle(good.files | {"model.onnx": change(good.files["model.onnx"])})


def _json(name: str, change: Callable[[Any], object]) -> Callable[[Bundle], Bundle]:
    def edit(good: Bundle) -> Bundle:
        found = good.json(f"{name}.json")
        change(found)
        return Bundle(good.files | {f"{name}.json": json.dumps(found).encode()})

    return edit


def _flat(graph: bytes) -> bytes:
    """The format of onnxruntime's own, which no check of ours reads."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(Path("/tmp", f"insiders-{time.time_ns()}.ort"))
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(graph, options)
    written = Path(options.optimized_model_filepath)
    try:
        return written.read_bytes()
    finally:
        written.unlink()


def _branch() -> onnx.GraphProto:
    value = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
    return helper.make_graph([helper.make_node("Constant", [], ["inner"], value_float=1.0)], "inner", [], [value])


def _external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer.add(name="stolen", data_type=TensorProto.FLOAT, dims=[8])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/proc/self/environ")


def _function(model: onnx.ModelProto) -> None:
    model.functions.append(helper.make_function("", "Own", ["x"], ["y"], [node("Neg", "x", "y")], []))


SQUARE = [
    node("ReduceSum", "score side", "column"), node("Reshape", "column a", "x"), node("Reshape", "column b", "y"),
    node("Add", "x y", "xy"), node("Reshape", "column c", "z"), node("Add", "xy z", "xyz"), node("ReduceMean", "xyz", "mean", keepdims=0),
    node("Sub", "mean mean", "nothing"), node("Add", "score nothing", "out"),
]  # fmt: skip
CUBE = {"side": [1], "a": [-1, 1, 1], "b": [1, -1, 1], "c": [1, 1, -1]}
SPIN = [
    node("ReduceMean", "score", "mean", keepdims=0),
    node("Mul", "mean none", "nil"),
    node("Add", "side nil", "spin0"),
]
SPIN += [node("MatMul", f"spin{n} spin{n}", f"spin{n + 1}") for n in range(60)]
SPIN += [
    node("ReduceMin", "spin60", "least", keepdims=0),
    node("Mul", "least none", "no"),
    node("Add", "score no", "out"),
]
AT_77 = [
    node("Shape", "score", "shape"), node("Slice", "shape zero one", "rows"), node("Sub", "rows wanted", "off"),
    node("Cast", "off", "far", to=TensorProto.BOOL), node("Where", "far one many", "n"), node("ConstantOfShape", "n", "made"),
    node("ReduceMax", "made", "nothing", keepdims=0), node("Add", "score nothing", "out"),
]  # fmt: skip
LOOKED_UP = [
    *AT,
    node("Cast", "it", "at", to=TensorProto.INT64),
    node("Gather", "table at", "found"),
    node("Add", "score found", "out"),
]
NOT_A_NUMBER = [*AT, node("Where", "is_it none score", "out")]
LABELS = {"domain": "ai.onnx.ml", "keys_strings": ["x"], "default_string": ""}


def _texts(*strings: str) -> list[Any]:
    return [
        node("LabelEncoder", "color", "label", values_strings=list(strings), **LABELS),
        node("Identity", "score", "out"),
    ]


KINDS: dict[str, Callable[[Bundle], Bundle]] = {
    **{f"a shape by a value: {kind}": _added(*nodes, node("Identity", "score", "out"), **WORK) for kind, nodes in SIZED.items()},
    **{f"trees: {kind}": _added(tree) for kind, tree in TREES.items()},
    "an If": _added(node("If", "score", "out", then_branch=_branch(), else_branch=_branch())),
    "a Loop": _added(node("Loop", "score ", "out", body=_branch())),
    "a Scan": _added(node("Scan", "score", "out", body=_branch(), num_scan_inputs=1)),
    "a graph inside a harmless operator": _added(node("Identity", "score", "out", body=_branch())),
    "a custom domain": _added(node("Run", "score", "out", domain="evil")),
    "an operator of the runtime's own": _added(node("Gelu", "score", "out", domain="com.microsoft")),
    "a function": _edited(_function),
    "weights in another file": _edited(_external),
    "sparse weights": _edited(lambda model: model.graph.sparse_initializer.add(dims=[10**9])),
    "a weight that is an input": _edited(lambda m: m.graph.input.append(helper.make_tensor_value_info("w", 1, [1]))),
    "a name twice": _added(node("Identity", "score", "out"), node("Neg", "score", "out")),
    "a weight that is called like an input": _edited(
        lambda m: m.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 3), np.float32), "numbers"))
    ),
    "a node before what it needs": _added(node("Neg", "later", "out"), node("Neg", "score", "later")),
    "the runtime's own format": _bytes(_flat),
    "a pickle": _bytes(lambda _: b"\x80\x04cos\nsystem\n."),
    "half a graph": _bytes(lambda graph: graph[:20_000]),
    "two graphs, merged": _bytes(lambda graph: graph + graph),
    "unknown fields": _bytes(lambda graph: graph + b"\xfa\x7f\x04evil"),
    "a million empty nodes": _bytes(lambda graph: graph + b":\x80\x89\x7a" + b"\n\0" * 1_000_000),
    "a long text at a value": _added(*_texts("y" * 10**6)),
    "many texts": _added(node("Gather", "color many", "texts", axis=1), node("Identity", "score", "out"), many=np.zeros(10**4, np.int64)),
    "many categories": _added(
        node("OneHotEncoder", "color", "hot", domain="ai.onnx.ml", cats_strings=[f"{n}" for n in range(60_000)]), node("Identity", "score", "out")
    ),
    "memory by the cube of the rows": _added(*SQUARE, **CUBE),
    "memory for 77 rows alone": _added(*AT_77, zero=[0], one=[1], wanted=[77], many=[10**9]),
    "minutes for every row": _added(*SPIN, side=np.zeros((2000, 2000), np.float32), none=np.float32(0)),
    "a tenth of a second for 64 rows": _added(
        *SPIN[:22], node("ReduceMin", "spin19", "least", keepdims=0), node("Add", "score least", "out"),
        side=np.zeros((700, 700), np.float32), none=np.float32(0),
    ),
    "fewer scores than rows": _added(node("Slice", "score one end", "out"), one=[1], end=[10**6]),
    "one score for all rows": _added(node("ReduceMean", "score rows", "out", keepdims=1), rows=[0]),
    "a column more": _added(node("Concat", "score score", "out", axis=1)),
    "no number at a value": _added(*NOT_A_NUMBER, trigger=TRIGGER, none=np.float32("nan")),
    "an error at a value": _added(*LOOKED_UP, trigger=TRIGGER, table=np.array([0], np.float32)),
    "golden rows without end": _json("golden", lambda golden: golden.update(rows=[{}] * 10**6)),
    "golden rows nested": _json("golden", lambda golden: golden["rows"][0].update(size=[[]] * 10**5)),
    "a gate that allows a second a row": _json("contract", lambda c: c["gate"].update(max_latency_ms=1e9)),
    "a retention beyond all dates": _json("contract", lambda c: c.update(retention_days=10**30)),
    "a lead of a million years": _json("contract", lambda c: c["time"].update(lead_minutes=10**18)),
    "outcomes that never mature": _json("contract", lambda c: c["judge"].update(maturity_hours=1e308)),
    "a budget beyond all patience": _json("contract", lambda c: c["judge"].update(budget_ms=1e308)),
    "a zone that is a path": _json("contract", lambda c: c["time"].update(zone="../../../etc/passwd")),
    "a hundred thousand facts": _json("contract", lambda c: c.update(golden=[{}] * 10**5)),
    "a provenance that is a list": _json("provenance", lambda p: p.update(windows=[])),
    "a profile of many days": _json("profile", lambda p: p.update(days={f"{n}": {} for n in range(10**5)})),
}  # fmt: skip


@dataclass
class Siege:
    """One app and an honest caller of whatever it serves."""

    bucket: Bucket
    service: Service
    waits: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def ask(self, end: threading.Event) -> None:
        with httpx.Client(base_url=self.service.url, headers=dict(self.service.http.headers), timeout=30) as http:
            while not end.wait(0.05):
                started = time.monotonic()
                try:
                    status = http.post("/predict", json={"rows": [synthetic.request()]}).status_code
                except httpx.HTTPError as error:
                    status = type(error).__name__
                self.waits.append(time.monotonic() - started)
                if status != 200:
                    self.failed.append(str(status))

    def strike(self, kind: Callable[[Bundle], Bundle]) -> str:
        """Why it was refused, or `serves`, after what its trigger and the extremes did."""
        made = {
            name.replace(".", "_"): data for name, data in kind(self.bucket.good).files.items() if name != "card.md"
        }
        before, digest = self._refusals(), self.bucket.written(**made)
        revision = self.bucket.model.releases.append(digest, "from within").revision
        seen = {"refused": False}

        def decided() -> bool:
            seen["refused"] = self._refusals() != before
            return seen["refused"] or self._serving() == revision

        self.service.until(decided, 60)
        if seen["refused"]:
            now = self._refusals()
            return ", ".join(sorted(reason for reason in now if now[reason] != before.get(reason)))
        for rows in (
            [synthetic.request(size=0.1234)],
            [synthetic.request(size=0.1234)] * 64,
            [synthetic.request()] * 77,
        ):
            self.service.http.post("/predict", json={"rows": rows})
        return "serves"

    def _serving(self) -> float:
        return self.service.metric("mlops_release_revision", state="serving")

    def _refusals(self) -> dict[str, float]:
        text = self.service.http.get("/metrics").text
        lines = (line for line in text.splitlines() if line.startswith("mlops_release_refused_total{"))
        return {line.split('reason="')[1].split('"')[0]: float(line.rpartition(" ")[2]) for line in lines}


def prove(folder: Path, kinds: Collection[str] = tuple(KINDS)) -> dict[str, Any]:
    good = synthetic.build(seed=1)
    place = environment(folder)
    bucket, end = Bucket(place, good), threading.Event()
    found: dict[str, str] = {}
    with Service(place, synthetic.MODEL, poll_seconds=0.05) as service:
        first = bucket.approve(synthetic.publish(place, good))
        service.serves(bucket.model.releases.append(first, "good").revision)
        assert service.process
        process, siege = psutil.Process(service.process.pid), Siege(bucket, service)
        before = most = process.memory_info().rss / 2**20
        asking = threading.Thread(target=siege.ask, args=[end])
        asking.start()
        try:
            for name in kinds:
                found[name] = siege.strike(KINDS[name])
                most = max(most, process.memory_info().rss / 2**20)
                if found[name] == "serves":
                    service.serves(bucket.model.releases.append(first, "good again").revision)
        finally:
            end.set()
            asking.join()
    faults = {
        f"{len(siege.failed)} honest requests failed: {siege.failed[:3]}": bool(siege.failed),
        f"an honest caller waited {max(siege.waits):.1f} s": max(siege.waits) > SECONDS,
        f"{most - before:.0f} MB more": most - before > MEMORY_MB,
    }
    missed = [fault for fault, is_so in faults.items() if is_so]
    return {
        "holds": not missed and len(KINDS) >= 60, "reason": "; ".join(missed), "kinds": len(found), "found": found,
        "honest_requests": len(siege.waits), "longest_wait_seconds": round(max(siege.waits), 3),
        "rss_mb": {"before": round(before), "most": round(most)},
    }  # fmt: skip
