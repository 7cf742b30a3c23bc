"""One training, from data to a bundle that the gate has judged."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from mlops import bundle as bundles
from mlops import promotion
from mlops.attestations import attest
from mlops.bundle import Bundle
from mlops.contract import Window
from mlops.environment import Environment
from mlops.errors import UserError
from mlops.model import Model
from mlops.registered_model import RegisteredModel
from mlops.retraining import Action
from mlops.sandbox import TOLERANCE
from mlops.verdict import Verdict
from training import data, estimator, export, features, gate, leakage, package, recalibration, report
from training.data import Split
from training.definition import ModelDefinition
from training.golden import check_golden
from training.registry import Registry

_SMOKE_ROWS = 200


@dataclass(frozen=True)
class Trained:
    digest: str
    bundle: Bundle
    verdict: Verdict
    metrics: dict[str, float]
    version: str | None
    report: Path


def train(
    environment: Environment, definition: ModelDefinition, train_window: Window | None = None,
    holdout_window: Window | None = None, seed: int = 0, accept: dict[str, str] | None = None,
    say: Callable[[str], None] = print,
) -> Trained:  # fmt: skip
    """`accept`: failed checks to ignore, with the reason. Raises UserError; a refusal by the gate is a result."""
    gate.require_acceptable(accept or {})
    say("load and validate")
    rows = data.prepare(environment, definition)
    smoke(definition, rows, seed)
    split = data.split(rows, definition.contract, train_window, holdout_window)
    return _judged(environment, definition, rows, split, seed, accept or {}, say)


def renew(
    environment: Environment, definition: ModelDefinition, action: Action, fresh: pl.DataFrame,
    say: Callable[[str], None] = print,
) -> Trained:  # fmt: skip
    """A model of the newest rows, `fresh` from the prediction log, or the champion recalibrated by them. Raises
    UserError."""
    say("load and validate")
    champion = promotion.champion(environment.model(definition.contract.model)) if action == "recalibrate" else None
    if champion:
        definition = replace(definition, contract=champion.contract)
    contract = definition.contract
    # Of rows without a time nobody knows which are new: an intercept is of the log's.
    rows = data.prepare(environment, definition, fresh, alone=champion is not None and contract.time is None)
    split = data.split(rows, contract, *data.newest_windows(rows, contract))
    if champion is None:
        smoke(definition, rows, 0)
    return _judged(environment, definition, rows, split, 0, {}, say, champion)


def _judged(
    environment: Environment, definition: ModelDefinition, rows: pl.DataFrame, split: Split, seed: int,
    accept: dict[str, str], say: Callable[[str], None], recalibrated: Bundle | None = None,
) -> Trained:  # fmt: skip
    contract, model = definition.contract, environment.model(definition.contract.model)
    registry = Registry(environment.tracking, contract.model)
    champion = comparable_champion(model, split.holdout.window)
    origin = package.provenance(contract, split, seed, definition.parameters)

    with registry.run(origin, environment.name) as run:
        say(f"fit {split.train.frame.height} rows")
        if recalibrated:
            candidate = recalibration.build(split, origin, recalibrated)
        else:
            candidate = package.build(definition, split, origin)
        say(f"gate, on {split.holdout.frame.height} rows")
        facts = [*leakage.checks(contract, split.train.frame), *package.checks(candidate)]
        facts += check_golden(contract, rows, candidate.score_rows)
        evidence = gate.evidence(contract, split.holdout.frame, candidate, champion)
        verdict = gate.decide(contract, evidence, facts, accept)
        say("report")
        with tempfile.TemporaryDirectory() as folder:
            served = champion.digest if champion else "none"
            lineage = {"champion": served, "commit": registry.commit, "run": run}
            here = environment.home / "reports" / contract.model
            report.write(Path(folder), candidate, split, evidence, verdict, lineage, here / "quarantine.csv")
            parameters = {"seed": seed, **origin["windows"], **candidate.parameters}
            registry.log(run, parameters, candidate.metrics, candidate.digest, verdict.decision, folder)
            page = report.keep(Path(folder), here / candidate.digest[:12], model, candidate.digest)
        say("sign")
        version = publish(model, candidate, verdict, registry, run, served)
    return Trained(candidate.digest, candidate.bundle, verdict, candidate.metrics, version, page)


def smoke(definition: ModelDefinition, rows: pl.DataFrame, seed: int) -> None:
    """Fit a few rows, export, compare: a model that cannot be exported fails in seconds, not after hours of fitting."""
    contract = definition.contract
    few = _some(rows, _SMOKE_ROWS)
    # No column is empty by chance.
    few = pl.concat([few, *(rows.drop_nulls(name).head(1) for name in contract.features)])
    if few[contract.target].n_unique() < 2:
        few = pl.concat([few, rows.filter(pl.col(contract.target) != few[contract.target][0]).head(_SMOKE_ROWS)])
    if few[contract.target].n_unique() < 2:
        raise UserError("target", contract.target, "has only one value: there is nothing to learn")
    pipeline = estimator.fit(definition.pipeline(contract, definition.parameters, seed), few, contract)
    graph = export.export(pipeline, contract)
    others = _some(rows[1:], 2 * _SMOKE_ROWS) if rows.height > 1 else rows
    model = Model(package.unmeasured(contract, pipeline, graph, few), "")

    def difference(rows: pl.DataFrame) -> float:
        exported = model.score_arrays(features.arrays(rows, contract))
        return export.parity(exported, estimator.score(pipeline, rows, contract))

    if not (found := difference(others)) <= TOLERANCE:  # nor is NaN
        complete = others.drop_nulls(list(contract.features))
        missing = 0 < complete.height < others.height and difference(complete) <= TOLERANCE
        why = " where values are missing; impute them" if missing else "; encode categories"
        hint = f"exports to a different model: scores differ by {found:.2g}{why} in the pipeline, not in the estimator"
        raise UserError("features.py", type(pipeline.steps[-1][1]).__name__, hint)


def _some(rows: pl.DataFrame, count: int) -> pl.DataFrame:
    return rows[np.linspace(0, rows.height - 1, min(count, rows.height)).astype(int)]


def comparable_champion(model: RegisteredModel, holdout: Window) -> Model | None:
    """The champion. Raises UserError if it was trained on the held-out rows: then they could not compare the two."""
    champion = promotion.champion(model)
    if champion is None:
        return None
    seen = champion.window("train")
    if type(seen.start) is type(holdout.start) and data.overlap(seen, holdout):
        hint = f"the champion {champion.digest[:12]} was trained on {seen}; choose rows that neither model has seen"
        raise UserError("holdout", str(holdout), hint)
    return Model(champion, champion.digest)


def publish(
    model: RegisteredModel, candidate: package.Candidate, verdict: Verdict, registry: Registry, run: str, champion: str
) -> str | None:
    """In this order a kill at any point leaves nothing that could be released: the gate's verdict comes last."""
    digest = bundles.write(model, candidate.bundle)
    attest(model, "built", digest, details={"commit": registry.commit, "run": run})
    version = registry.register(run, digest, verdict.decision) if verdict.decision == "passed" else None
    details = verdict.as_dict() | {"metrics": candidate.metrics, "champion": champion}
    attest(model, "gate", digest, verdict=verdict.decision, details=details)
    return version
