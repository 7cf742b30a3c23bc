import hashlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from sklearn.pipeline import Pipeline

from mlops.bundle import Bundle, canonical
from mlops.contract import Contract
from mlops.environment import ROOT
from mlops.errors import VerificationError
from mlops.model import Model
from mlops.report import render
from mlops.sandbox import TOLERANCE, run_in_sandbox
from mlops.verdict import Check, check
from training import estimator, evaluation, features, profile
from training.data import Split
from training.definition import ModelDefinition
from training.export import export, parity

_LIBRARIES = ("scikit-learn", "skl2onnx", "onnx", "numpy", "polars")
_CARD = Path(__file__).parent / "templates" / "card.md.j2"


@dataclass(frozen=True)
class Candidate:
    """A packaged model with its scores of the held-out rows; each array has shape (rows,)."""

    bundle: Bundle
    model: Model
    scores: np.ndarray  # of the exported graph
    original: np.ndarray  # of the fitted pipeline
    baseline: np.ndarray  # of a linear model; of the champion, for a recalibration
    metrics: dict[str, float]
    parameters: dict[str, Any]  # of the estimator, its defaults too
    unseen: np.ndarray | None = None  # scores of the same rows by a twin that has not seen them, if this model has

    @property
    def digest(self) -> str:
        return self.model.digest

    def score_rows(self, rows: Sequence[dict[str, Any]]) -> list[float]:
        """`rows`: as a request has them."""
        return self.model.score([self.model.schema.row(row) for row in rows])


def build(definition: ModelDefinition, split: Split, origin: dict[str, Any]) -> Candidate:
    """Fit, export and package."""
    contract, train, holdout = definition.contract, split.train.frame, split.holdout.frame
    pipeline = estimator.fit(definition.pipeline(contract, definition.parameters, origin["seed"]), train, contract)
    linear = estimator.fit(estimator.baseline(contract), train, contract)
    original = estimator.score(pipeline, holdout, contract)
    metrics = evaluation.summary(contract, holdout[contract.target].to_numpy(), original)
    scores = estimator.score(pipeline, train, contract)
    built = bundle(contract, pipeline, export(pipeline, contract), train, scores, origin, metrics)
    model = Model(built, built.digest)
    exported = model.score_arrays(features.arrays(holdout, contract)).astype(float)
    final = pipeline.steps[-1][1]
    parameters = {"estimator": type(final).__name__, **final.get_params(deep=False)}
    baseline = estimator.score(linear, holdout, contract)
    return Candidate(built, model, exported, original, baseline, metrics, parameters)


def provenance(contract: Contract, split: Split, seed: int, parameters: dict[str, Any]) -> dict[str, Any]:
    """All that determines the bundle, and nothing about the moment of the training."""
    lock = ROOT / "requirements" / "training.txt"
    rows = {"train_rows": split.train.frame.height, "holdout_rows": split.holdout.frame.height}
    return {
        "model": contract.model,
        "data": {"fingerprint": split.fingerprint, **rows},
        "windows": {"train": str(split.train.window), "holdout": str(split.holdout.window)},
        "seed": seed,
        "parameters": parameters,
        "lock": hashlib.sha256(lock.read_bytes()).hexdigest() if lock.exists() else "none",
        "architecture": platform.machine(),
        "python": ".".join(platform.python_version_tuple()[:2]),
        "libraries": {name: version(name) for name in _LIBRARIES},
    }


def bundle(
    contract: Contract, pipeline: Pipeline, graph: bytes, train: pl.DataFrame, scores: np.ndarray,
    origin: dict[str, Any], metrics: dict[str, float],
) -> Bundle:  # fmt: skip
    kind = type(pipeline.steps[-1][1]).__name__
    card = render(_CARD, contract=contract, estimator=kind, origin=origin, metrics=metrics)
    return Bundle({
        "model.onnx": graph,
        "contract.json": contract.json_bytes(),
        "profile.json": canonical(profile.profile(contract, train, scores)),
        "golden.json": canonical(profile.golden(contract, train, scores)),
        "card.md": card.encode(),
        "provenance.json": canonical(origin),
    })  # fmt: skip


def unmeasured(contract: Contract, pipeline: Pipeline, graph: bytes, rows: pl.DataFrame) -> Bundle:
    """A bundle to try an export with; it is never written."""
    nothing = {"windows": {"train": "", "holdout": ""}, "data": {"train_rows": 0, "holdout_rows": 0, "fingerprint": ""}}
    return bundle(contract, pipeline, graph, rows, estimator.score(pipeline, rows, contract), nothing | {"seed": 0}, {})


def checks(candidate: Candidate) -> list[Check]:
    """Facts about the artifact: parity, that it loads in the sandbox, size, latency."""
    limits = candidate.model.contract.gate
    difference = parity(candidate.scores, candidate.original)
    size = len(candidate.bundle.files["model.onnx"]) / 2**20
    latency, problem = None, None
    try:
        latency = run_in_sandbox(candidate.bundle, candidate.digest).latency_ms
    except VerificationError as error:
        problem = error
    slow = problem is not None and problem.reason == "latency"
    why = str(problem or "")
    return [
        check("parity", difference <= TOLERANCE, difference, f"≤ {TOLERANCE}",
              f"exported and original scores differ by {difference:.2g}"),
        check("loads", slow or not problem, why or "yes", "as the app loads it", why),
        check("size", size <= limits.max_size_mb, size, f"≤ {limits.max_size_mb} MB", f"{size:.0f} MB"),
        check("latency", not slow, latency, f"≤ {limits.max_latency_ms} ms a row", why),
    ]  # fmt: skip
