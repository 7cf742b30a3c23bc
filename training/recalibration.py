"""A champion whose scores lie above or below what came to pass gets an intercept inside its graph: added to its logits
(binary), or to its values (regression). All else, its ranking too, stays as it was."""

import json
from datetime import date
from typing import Any

import numpy as np
import onnx
import polars as pl
from onnx import TensorProto, helper, numpy_helper
from scipy import optimize, special

from mlops.bundle import Bundle, canonical
from mlops.contract import Contract, Window
from mlops.errors import UserError
from mlops.model import Model
from training import data, evaluation, features
from training.data import Split
from training.package import Candidate

_CLIP = 1e-6
_NAME = "recalibration"  # of the number in the graph: a second recalibration changes it


def build(split: Split, origin: dict[str, Any], champion: Bundle) -> Candidate:
    """An intercept from the newest days. Its baseline is the champion: if it were no better than that, it is refused."""
    contract, model = champion.contract, Model(champion, champion.digest)
    rows, earlier = split.holdout.frame, _not_trained_on(champion, split.train.frame)
    arrays, y = features.arrays(rows, contract), rows[contract.target].to_numpy()
    before = model.score_arrays(arrays).astype(float)
    day, past = data.days(rows, contract), data.days(earlier, contract)
    newest = day > day.max() - contract.retraining.window_days if contract.time else np.full(len(y), True)
    intercept = fit_intercept(contract, before[newest], y[newest])
    if contract.time:
        scores = model.score_arrays(features.arrays(earlier, contract)).astype(float)
        outcomes = earlier[contract.target].to_numpy()
        every = (np.append(values, own) for values, own in ((past, day), (scores, before), (outcomes, y)))
        unseen = _as_used(contract, day, before, *every)
    else:
        unseen = _by_the_others(contract, day, before, y)
    about = {"of": champion.digest, "days": str(split.holdout.window), "rows": int(newest.sum())}
    if contract.time:  # it has seen the held-out days too: the next hold-out begins after them
        seen = Window(start=split.train.window.start, end=split.holdout.window.end)
        origin = origin | {"windows": origin["windows"] | {"train": str(seen)}}
    bundle = recalibrated(champion, intercept, about, origin)
    scores = Model(bundle, bundle.digest)
    return Candidate(
        bundle, scores, scores.score_arrays(arrays).astype(float), shifted(contract, before, intercept), before,
        evaluation.summary(contract, y, unseen), {"intercept": intercept}, unseen,
    )  # fmt: skip


def _not_trained_on(champion: Bundle, rows: pl.DataFrame) -> pl.DataFrame:
    seen = champion.window("train").end
    return rows.filter(data.local_dates(rows, champion.contract) >= seen) if isinstance(seen, date) else rows.clear()


def _as_used(
    contract: Contract, day: np.ndarray, before: np.ndarray, past: np.ndarray, scores: np.ndarray, y: np.ndarray
) -> np.ndarray:
    """The scores of each held-out day by an intercept as a rollout would have brought it: from a window that ended so long
    before. A mean that swings back soon is no reason for an intercept. `past`, `scores`, `y`: of all days."""
    window, unseen = contract.retraining.window_days, before.copy()
    for each in np.unique(day):
        end = each - contract.rollout_days
        known = (past >= end - window) & (past < end)
        if len(np.unique(past[known])) < window // 2:
            hint = f"needs {contract.recalibration_days} days that the champion was not trained on; retrain, or wait"
            raise UserError("action", "recalibrate", hint)
        unseen[day == each] = shifted(contract, before[day == each], fit_intercept(contract, scores[known], y[known]))
    return unseen


def _by_the_others(contract: Contract, block: np.ndarray, before: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Rows without a time: those of each block by an intercept from all others."""
    unseen = before.copy()
    for each in np.unique(block):
        own = block == each
        unseen[own] = shifted(contract, before[own], fit_intercept(contract, before[~own], y[~own]))
    return unseen


def fit_intercept(contract: Contract, score: np.ndarray, y: np.ndarray) -> float:
    """The maximum-likelihood intercept (binary), or the median of the residuals; arrays (rows,)."""
    if contract.task == "regression":
        return float(np.median(y - score))
    logits, share = special.logit(np.clip(score, _CLIP, 1 - _CLIP)), np.clip(y.mean(), _CLIP, 1 - _CLIP)
    return float(optimize.brentq(lambda b: special.expit(logits + b).mean() - share, -30, 30))


def shifted(contract: Contract, score: Any, intercept: float, clip: float = _CLIP) -> np.ndarray:
    if contract.task == "regression":
        return np.asarray(score) + intercept
    return special.expit(special.logit(np.clip(score, clip, 1 - clip)) + intercept)


def recalibrated(champion: Bundle, intercept: float, about: dict[str, Any], origin: dict[str, Any]) -> Bundle:
    """`about`: what the intercept is from; `origin`: its provenance."""
    contract, files = champion.contract, dict(champion.files)
    files["model.onnx"] = graph = with_intercept(contract, files["model.onnx"], intercept)
    profile = champion.json("profile.json")
    edges = profile["bins"]["score"]["edges"]
    profile["bins"]["score"]["edges"] = shifted(contract, edges, intercept, clip=0).tolist()  # two must not become one
    golden, model = champion.json("golden.json"), Model(Bundle(files | {"model.onnx": graph}), "")
    golden["scores"] = model.score([model.schema.row(row) for row in golden["rows"]])
    origin = origin | {"recalibration": about | {"intercept": intercept}}
    card = f"\n\nRecalibrated: {json.dumps(origin['recalibration'], sort_keys=True)}\n"
    changed = {"profile.json": profile, "golden.json": golden, "provenance.json": origin}
    files |= {name: canonical(value) for name, value in changed.items()}
    return Bundle(files | {"card.md": files["card.md"].partition(b"\n\nRecalibrated: ")[0] + card.encode()})


def with_intercept(contract: Contract, graph: bytes, intercept: float) -> bytes:
    model = onnx.load_from_string(graph)
    inside = model.graph
    if known := [each for each in inside.initializer if each.name == _NAME]:
        before = float(numpy_helper.to_array(known[0])[0])
        known[0].CopyFrom(_constant(_NAME, before + intercept))
        return model.SerializeToString()
    output, before = inside.output[-1].name, f"{_NAME}_before"
    for node in inside.node:
        for names in (node.input, node.output):
            names[:] = [before if name == output else name for name in names]
    inside.initializer.append(_constant(_NAME, intercept))
    if contract.task == "regression":
        inside.node.append(helper.make_node("Add", [before, _NAME], [output]))
        return model.SerializeToString()
    one = TensorProto.INT64
    inside.initializer.extend([
        helper.make_tensor(f"{_NAME}_column", one, [1], [1]),
        _constant(f"{_NAME}_low", _CLIP, scalar=True), _constant(f"{_NAME}_high", 1 - _CLIP, scalar=True),
        _constant(f"{_NAME}_one", 1.0),
    ])  # fmt: skip

    def node(kind: str, result: str, *inputs: str, **attributes: Any) -> str:
        inside.node.append(helper.make_node(kind, list(inputs), [result], **attributes))
        return result

    positive = node("Gather", f"{_NAME}_positive", before, f"{_NAME}_column", axis=1)
    clipped = node("Clip", f"{_NAME}_clipped", positive, f"{_NAME}_low", f"{_NAME}_high")
    odds = node("Div", f"{_NAME}_odds", clipped, node("Sub", f"{_NAME}_rest", f"{_NAME}_one", clipped))
    moved = node("Add", f"{_NAME}_moved", node("Log", f"{_NAME}_logit", odds), _NAME)
    score = node("Sigmoid", f"{_NAME}_score", moved)
    node("Concat", output, node("Sub", f"{_NAME}_negative", f"{_NAME}_one", score), score, axis=1)
    return model.SerializeToString()


def _constant(name: str, value: float, scalar: bool = False) -> TensorProto:
    return helper.make_tensor(name, TensorProto.FLOAT, [] if scalar else [1], [value])
