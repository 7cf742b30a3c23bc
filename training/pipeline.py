"""One training, from data to a bundle that the gate has judged."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from mlops import bundle as bundles
from mlops import door
from mlops.bundle import Bundle
from mlops.contract import Contract, Window
from mlops.environment import Environment
from mlops.errors import Fault, Refused
from mlops.model import Model
from mlops.probe import TOLERANCE, probe
from mlops.statements import state
from training import data, estimator, evaluate, features, leakage, package, report
from training.export import export, parity
from training.gate import Check, Evidence, Verdict, judge
from training.golden import check_golden
from training.plots import plots
from training.recipe import Recipe
from training.registry import Registry, commit
from training.source import read_snapshot
from training.validation import typed, validate

Say = Callable[[str], None]
_SMOKE_ROWS = 200
_IMPORTANCE_ROWS = 5000


@dataclass(frozen=True)
class Trained:
    digest: str
    bundle: Bundle
    verdict: Verdict
    metrics: dict[str, float]
    version: str | None
    report: Path


def train(
    environment: Environment,
    recipe: Recipe,
    train_window: Window | None = None,
    holdout_window: Window | None = None,
    seed: int = 0,
    accept: dict[str, str] | None = None,
    say: Say = print,
) -> Trained:
    """`accept`: checks that a person lets pass, with the reason. Raises Fault; a refusal by the gate is a result."""
    contract, out = recipe.contract, environment.home / "reports" / recipe.contract.model
    registry = Registry(environment.tracking, contract.model)
    say("load")
    raw = recipe.load() if os.environ.get("MLOPS_DATA", "load") == "load" else read_snapshot(environment.store, contract.model)
    data.require_columns(raw, contract)
    smoke(recipe, raw, seed)
    say("validate")
    frame = data.canonical(validate(raw, contract, out / "quarantine.csv"))
    train_part = data.cut(frame, contract, train_window or contract.windows.train)
    holdout = data.cut(frame, contract, holdout_window or contract.windows.holdout)
    if data.overlap(train_part.window, holdout.window):
        raise Fault("holdout", str(holdout.window), f"overlaps the training window {train_part.window}")
    fingerprint = data.fingerprint(pl.concat([train_part.frame, holdout.frame]))
    origin = package.provenance(contract, fingerprint, train_part, holdout, seed, recipe.parameters)
    champion = serving_model(environment, contract, holdout.window)

    tags = {"fingerprint": fingerprint, "commit": commit(), "environment": environment.name, "seed": str(seed)}
    settings = {"seed": seed, **origin["windows"], **estimator.DEFAULTS, **recipe.parameters}
    with registry.run(f"train {train_part.window}", settings, tags) as run:
        say(f"fit {train_part.frame.height} rows")
        pipeline = estimator.fit(recipe.pipeline(contract, recipe.parameters, seed), train_part.frame, contract)
        linear = estimator.fit(estimator.baseline(contract), train_part.frame, contract)
        say(f"evaluate {holdout.frame.height} rows")
        graph = export(pipeline, contract)
        y = holdout.frame[contract.target].to_numpy()
        original = estimator.score(pipeline, holdout.frame, contract)
        metrics = evaluate.summary(contract, y, original)
        in_training = estimator.score(pipeline, train_part.frame, contract)
        built = package.bundle(contract, pipeline, graph, train_part.frame, in_training, origin, metrics)
        model = Model(built, built.digest)
        exported = model.score_arrays(features.arrays(holdout.frame, contract))

        say("gate")
        facts = [*_leaks(contract, train_part.frame), *_artifact(contract, built, model, exported, original)]
        facts += check_golden(contract, frame, lambda rows: model.score([model.schema.row(row) for row in rows]))
        evidence = Evidence(
            y=y,
            day=data.days(holdout.frame, contract),
            score=exported.astype(float),
            baseline=estimator.score(linear, holdout.frame, contract),
            champion=champion.score_arrays(features.arrays(holdout.frame, champion.contract)).astype(float) if champion else None,
            groups=_groups(contract, holdout.frame),
        )
        verdict = _accept(judge(contract, evidence, facts), accept or {})

        say("report")
        word = "passed" if verdict.passed else "refused"
        about = {
            "digest": built.digest,
            "champion": champion.digest if champion else "none",
            **origin["windows"],
            "fingerprint": fingerprint,
            "commit": tags["commit"],
        }
        importance = _importance(contract, model, holdout.frame, y)
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            drawn = plots(contract, y, exported.astype(float), importance, work / "plots")
            report.write(work, f"{contract.model}: {train_part.window}", verdict, about, metrics, drawn)
            (work / "bundle").mkdir()
            for name, content in (built.files | {"manifest.json": built.manifest}).items():
                (work / "bundle" / name).write_bytes(content)
            registry.log(metrics, {"digest": built.digest, "gate": word}, folder)
            page = _keep(out, work, built.digest)

        say("sign")
        # In this order a kill at any point leaves nothing that could be released: the verdict comes last.
        bundles.write(environment.store, contract.model, built)
        state(
            environment.store,
            environment.keys,
            "built",
            contract.model,
            built.digest,
            details={"commit": tags["commit"], "run": run.info.run_id},
        )
        version = registry.register(run, built.digest, word) if verdict.passed else None
        details = {**report.verdict_json(verdict), "metrics": metrics, "champion": about["champion"]}
        state(environment.store, environment.keys, "gate", contract.model, built.digest, verdict=word, details=details)
    return Trained(built.digest, built, verdict, metrics, version, page)


def smoke(recipe: Recipe, frame: pl.DataFrame, seed: int) -> None:
    """Fit a few rows, export, compare: what cannot be exported right fails in seconds, not after hours of fitting."""
    contract = recipe.contract
    frame = typed(frame, contract).drop_nulls(contract.target)
    few = frame[np.linspace(0, frame.height - 1, min(_SMOKE_ROWS, frame.height)).astype(int)]
    few = pl.concat([few, *(frame.drop_nulls(name).head(1) for name in contract.features)])  # no column is empty by chance
    others = frame[np.linspace(1, frame.height - 1, min(2 * _SMOKE_ROWS, frame.height)).astype(int)]
    if contract.task == "binary" and few[contract.target].n_unique() < 2:
        positives = frame.filter(pl.col(contract.target) != few[contract.target][0])
        few = pl.concat([few, positives.head(_SMOKE_ROWS)])
    if few[contract.target].n_unique() < 2:
        raise Fault("target", contract.target, "has one value only: there is nothing to learn")
    pipeline = estimator.fit(recipe.pipeline(contract, recipe.parameters, seed), few, contract)
    graph = export(pipeline, contract)
    scores = estimator.score(pipeline, others, contract)
    trial = package.bundle(
        contract,
        pipeline,
        graph,
        few,
        estimator.score(pipeline, few, contract),
        {"windows": {"train": "", "holdout": ""}, "data": {"train_rows": 0, "holdout_rows": 0, "fingerprint": ""}, "seed": seed},
        {},
    )
    difference = parity(Model(trial, "").score_arrays(features.arrays(others, contract)), scores)
    if not difference <= TOLERANCE:  # nor is NaN
        raise Fault(
            "features.py",
            type(pipeline.steps[-1][1]).__name__,
            f"exports to a different model: scores differ by {difference:.2g}; encode categories in the pipeline, not in the estimator",
        )


def serving_model(environment: Environment, contract: Contract, holdout: Window) -> Model | None:
    """The champion, if it has not seen the held-out rows: then they could not compare the two."""
    champion = door.champion(environment, contract.model)
    if champion is None:
        return None
    seen = Window.parse(champion.json("provenance.json")["windows"]["train"])
    if type(seen.start) is type(holdout.start) and data.overlap(seen, holdout):
        raise Fault(
            "holdout", str(holdout), f"the champion {champion.digest[:12]} was trained on {seen}; take rows that neither model has seen"
        )
    return Model(champion, champion.digest)


def _leaks(contract: Contract, frame: pl.DataFrame) -> list[Check]:
    late = leakage.known_too_late(frame, contract)
    checks = [
        Check(
            "known_at",
            not late,
            ", ".join(late) or "none",
            "no column",
            "; ".join(f"{name} became known after the prediction in {rows} rows" for name, rows in late.items()),
        )
    ]
    bound = contract.gate.max_single_feature_auc
    alone = leakage.single_feature_auc(frame, contract)
    telling = {name: auc for name, auc in alone.items() if auc > bound}
    why = "; ".join(f"{name} alone has AUC {auc:.2f}" for name, auc in telling.items())
    best = max(alone.values(), default=0.5)
    return [
        *checks,
        Check(
            "leakage",
            not telling,
            best,
            f"≤ {bound}",
            f"{why}: is it known at prediction time? If it is: --accept leakage, or gate.max_single_feature_auc",
        ),
    ]


def _artifact(contract: Contract, built: Bundle, model: Model, exported: np.ndarray, original: np.ndarray) -> list[Check]:
    difference = parity(exported, original)
    size = len(built.files["model.onnx"]) / 2**20
    row = [model.schema.row(built.json("golden.json")["rows"][0])]
    times = []
    for _ in range(200):
        started = time.perf_counter()
        model.score(row)
        times.append((time.perf_counter() - started) * 1000)
    latency = float(np.median(times))
    try:
        probe(built, built.digest)
        refusal = ""
    except Refused as refused:
        refusal = str(refused)
    gate = contract.gate
    return [
        Check("parity", difference <= TOLERANCE, difference, f"≤ {TOLERANCE}", f"exported and original scores differ by {difference:.2g}"),
        Check("loads", not refusal, refusal or "yes", "as the app loads it", refusal),
        Check("size", size <= gate.max_size_mb, size, f"≤ {gate.max_size_mb} MB", f"{size:.0f} MB"),
        Check(
            "latency",
            latency <= gate.max_latency_ms,
            "within" if latency <= gate.max_latency_ms else latency,
            f"≤ {gate.max_latency_ms} ms a row",
            f"{latency:.1f} ms a row",
        ),
    ]


def _groups(contract: Contract, frame: pl.DataFrame) -> dict[str, np.ndarray]:
    protected = [name for name, feature in contract.features.items() if feature.protected]
    return {name: frame[name].cast(pl.String).fill_null("missing").to_numpy().astype(str) for name in {*contract.slices, *protected}}


def _importance(contract: Contract, model: Model, frame: pl.DataFrame, y: np.ndarray) -> dict[str, float]:
    """By how much the loss rises when one column is shuffled."""
    some = np.sort(np.random.default_rng(0).permutation(len(y))[:_IMPORTANCE_ROWS])
    frame, y = frame[some], y[some]
    unit = evaluate.scale(contract, y)

    def mean_loss(frame: pl.DataFrame) -> float:
        scores = model.score_arrays(features.arrays(frame, contract)).astype(float)
        return float(evaluate.loss(contract, y, scores, unit).mean())

    whole = mean_loss(frame)
    return {name: mean_loss(frame.with_columns(pl.col(name).shuffle(seed=1))) - whole for name in contract.features}


def _accept(verdict: Verdict, accept: dict[str, str]) -> Verdict:
    if foreign := set(accept) - {"too_good", "leakage"}:
        raise Fault("accept", sorted(foreign)[0], "only too_good and leakage are a person's to judge")
    checks = [
        replace(check, accepted=accept[check.name]) if check.name in accept and not check.passed else check for check in verdict.checks
    ]
    return replace(verdict, checks=checks)


def _keep(out: Path, work: Path, digest: str) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    for suffix in ("html", "json"):
        (out / f"{digest[:12]}.{suffix}").write_bytes((work / f"report.{suffix}").read_bytes())
    return out / f"{digest[:12]}.html"
