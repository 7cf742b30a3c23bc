"""The gate against models with planted faults, honest retrainings, and effects of known size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import polars as pl
from scipy.special import expit, logit
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import Pipeline

from mlops.bundle import Bundle
from mlops.contract import Contract
from mlops.environment import MODELS
from mlops.model import Model
from mlops.verdict import Check, Verdict
from tests import synthetic
from training import data, estimator, evaluation, features, gate, leakage, package
from training.definition import ModelDefinition, load_definition
from training.export import export
from training.gate import Evidence
from training.golden import check_golden
from training.package import Candidate
from training.validation import validate

_ROW = {name: value for name, value in synthetic.request(size=-1.0).items() if name != "customer"}
_GOLDEN = [
    {"about": "a larger one is likelier", "row": _ROW, "change": {"size": 1.0}, "by": 0.2},
    {"about": "the first row met its own heat", "where": {"customer": "first"}, "expect": {"heat": 1.25}},
]


@dataclass(frozen=True)
class Problem:
    """Rows before and after a cut, and a champion trained on the first."""

    contract: Contract
    train: pl.DataFrame
    holdout: pl.DataFrame
    build: Callable[..., Pipeline]

    def fit(self, rows: pl.DataFrame | None = None, contract: Contract | None = None, **parameters: Any) -> Pipeline:
        contract = contract or self.contract
        return estimator.fit(self.build(contract, parameters, 0), self.train if rows is None else rows, contract)

    def score(self, fitted: Pipeline) -> np.ndarray:
        return estimator.score(fitted, self.holdout, self.contract)

    @cached_property
    def champion(self) -> Pipeline:
        return self.fit()

    @cached_property
    def honest(self) -> Pipeline:
        """The champion trained anew on nine days of ten."""
        return self.retrained(0)

    def retrained(self, seed: int) -> Pipeline:
        day = data.days(self.train, self.contract)
        days = np.unique(day)
        kept = np.random.default_rng(seed).permutation(days)[: round(0.9 * len(days))]
        return self.fit(self.train.filter(pl.Series(np.isin(day, kept))))

    @cached_property
    def evidence(self) -> Evidence:
        """Of the honest retraining against the champion."""
        linear = estimator.fit(estimator.baseline(self.contract), self.train, self.contract)
        scored: Any = SimpleNamespace(scores=self.score(self.honest), baseline=self.score(linear), unseen=None)
        found = gate.evidence(self.contract, self.holdout, scored, None)
        return replace(found, champion=self.score(self.champion))

    def verdict(self, score: np.ndarray, facts: list[Check] | None = None, **changes: Any) -> Verdict:
        return gate.decide(self.contract, replace(self.evidence, score=score, **changes), facts or [], accept={})

    def on(self, rows: pl.DataFrame) -> Problem:
        """The same models on other held-out rows."""
        other = replace(self, holdout=rows)
        other.__dict__.update(champion=self.champion, honest=self.honest)
        return other

    def bundle(self, fitted: Pipeline, graph: bytes | None = None) -> Bundle:
        return package.unmeasured(self.contract, fitted, graph or export(fitted, self.contract), self.train)

    def candidate(self, fitted: Pipeline, graph: bytes | None = None) -> Candidate:
        """As a training packages it; `graph`: of another export."""
        built, original = self.bundle(fitted, graph), self.score(fitted)
        model = Model(built, built.digest)
        exported = model.score_arrays(features.arrays(self.holdout, self.contract)).astype(float)
        return Candidate(built, model, exported, original, original, {}, {})


def synthetic_problem(days: int = 140, rows_a_day: int = 200) -> Problem:
    contract = Contract.model_validate(
        synthetic.contract_yaml(golden=_GOLDEN, windows={"train": "0..0.7", "holdout": "0.7..1.0"})
    )
    rows = synthetic.frame(days, rows_a_day)
    first = rows[:1].with_columns(customer=pl.lit("first"), heat=pl.lit(1.25))
    rows = data.canonical(pl.concat([first, rows[1:]]))
    cuts = [data.cut(rows, contract, window).frame for window in (contract.windows.train, contract.windows.holdout)]
    return Problem(
        contract,
        *cuts,
        build=lambda c, parameters, seed: estimator.build(c, {"max_iter": 40} | parameters, seed, features.preprocess),
    )


def own_problem(folder: Path) -> tuple[Problem, pl.DataFrame] | None:
    """The repository's own model by its own windows, and all its rows after the training ones; None without one."""
    models = [path.parent.name for path in MODELS.glob("*/contract.yaml")]
    if len(models) != 1 or load_definition(models[0]).contract.time is None:
        return None
    own: ModelDefinition = load_definition(models[0])
    rows = data.canonical(validate(own.load(), own.contract, folder / "quarantine.csv"))
    train, holdout = (
        data.cut(rows, own.contract, window) for window in (own.contract.windows.train, own.contract.windows.holdout)
    )
    later = rows.filter(pl.Series(data.days(rows, own.contract) > data.days(train.frame, own.contract).max()))

    def build(contract: Contract, parameters: dict[str, Any], seed: int) -> Pipeline:
        return own.pipeline(contract, own.parameters | parameters, seed)  # as a training does

    return Problem(own.contract, train.frame, holdout.frame, build), later


@dataclass(frozen=True)
class Bad:
    name: str
    planted: str
    check: str  # the one that must refuse it
    verdict: Verdict

    @property
    def caught(self) -> bool:
        found = [each for each in self.verdict.checks if each.name.startswith(self.check)]
        return self.verdict.decision == "refused" and any(each.outcome == "fail" and each.why for each in found)


def bad_models(problem: Problem) -> Iterator[Bad]:
    """Models that must not pass, each with one fault of a known size."""
    yield from _worse(problem)
    yield from _uneven(problem)
    yield from _leaking(problem)
    yield from _broken(problem)
    yield from _first(problem)


def planted_loss(problem: Problem, score: np.ndarray) -> str:
    y, champion = problem.evidence.y, problem.evidence.champion
    assert champion is not None
    losses = [evaluation.loss(problem.contract, y, s).mean() for s in (score, champion)]
    return f"loss {losses[0] - losses[1]:+.4f}"


def _worse(problem: Problem) -> Iterator[Bad]:
    target, train, honest = problem.contract.target, problem.train, problem.evidence.score
    shuffled = train.with_columns(pl.col(target).shuffle(seed=1))
    few = train.sample(fraction=0.02, seed=1)
    scores = {
        "labels shuffled": problem.score(problem.fit(shuffled)),
        "answers inverted": 1 - honest,
        "a fiftieth of the rows, learnt by heart": problem.score(problem.fit(few, min_samples_leaf=1, max_iter=200)),
        "a column dead in training": problem.score(problem.fit(train.with_columns(heat=pl.lit(0.0)))),
        "twice as sure": expit(2 * logit(honest)),
        "every tenth row has another's score": np.where(
            np.arange(len(honest)) % 10, honest, np.random.default_rng(2).permutation(honest)
        ),
    }
    for name, score in scores.items():
        yield Bad(name, planted_loss(problem, score), "loss", problem.verdict(score))
    for name, score in {
        "logits shifted by 0.7": expit(logit(honest) + 0.7),
        "half as sure": expit(logit(honest) / 2),
    }.items():
        error = evaluation.calibration_error(problem.contract, problem.evidence.y, score)[0]
        yield Bad(name, f"calibration error {error:.3f}", "calibration", problem.verdict(score))


def _uneven(problem: Problem) -> Iterator[Bad]:
    honest, groups = problem.evidence.score, problem.evidence.groups
    grey, north, a = groups["color"] == "grey", groups["region"] == "north", groups["group"] == "a"
    for name, inside, score in (
        ("one color of ten rows in a hundred inverted", grey, np.where(grey, 1 - honest, honest)),
        (
            "one color of ten rows in a hundred shifted by one logit",
            grey,
            np.where(grey, expit(logit(honest) + 1), honest),
        ),
        ("one region three times as sure", north, np.where(north, expit(3 * logit(honest)), honest)),
    ):
        change = evaluation.loss(problem.contract, problem.evidence.y, score) - evaluation.loss(
            problem.contract, problem.evidence.y, honest
        )
        yield Bad(name, f"loss {change[inside].mean():+.3f} on {inside.sum()} rows", "slice:", problem.verdict(score))
    apart = expit(logit(honest) + np.where(a, 0.4, -0.4))
    yield Bad("two groups drawn apart", "0.4 logits each way", "fairness:group:calibration", problem.verdict(apart))
    blind = np.where(a, np.minimum(honest, 0.49 + honest / 1000), honest)
    missed = (honest >= problem.contract.threshold) & a & (problem.evidence.y == 1)
    yield Bad(
        "no one of a group above the threshold",
        f"{missed.sum()} rows",
        "fairness:group:true-positive",
        problem.verdict(blind),
    )


def _leaking(problem: Problem) -> Iterator[Bad]:
    train, target = problem.train, problem.contract.target
    random = np.random.default_rng(3)
    y = train[target].to_numpy()
    honest = problem.evidence.score

    def with_feature(name: str, kind: str, **more: Any) -> Contract:
        raw = problem.contract.model_dump(mode="json")
        raw["features"] |= {name: {"type": kind, **more}}
        return Contract.model_validate(raw | {"after": []})

    late = train.with_columns(
        heat_at=pl.when(pl.int_range(pl.len()) % 50 == 0).then(pl.col("at")).otherwise(pl.col("heat_at"))
    )
    yield Bad(
        "a column known after the prediction",
        "an hour, 2 % of the rows",
        "known_at",
        problem.verdict(honest, leakage.checks(problem.contract, late)),
    )
    closed = np.where(random.random(len(y)) < 0.1, 1 - y, y)
    columns = {
        "settled": ("number", pl.Series(np.where(y > 0.5, 1.8, 0.0) + random.normal(size=len(y)))),
        "status": ("category", pl.Series(np.where(closed > 0.5, "closed", "open"))),
        "refund": ("number", pl.Series([7.0 if c > 0.5 else None for c in closed])),
    }
    for name, (kind, column) in columns.items():
        facts = leakage.checks(
            with_feature(name, kind, **({"missing": True} if name == "refund" else {})),
            train.with_columns(column.alias(name)),
        )
        auc = _estimate(facts, "leakage")
        yield Bad(
            f"the outcome in a {kind} column '{name}'",
            f"AUC {auc:.3f} alone",
            "leakage",
            problem.verdict(honest, facts),
        )

    hint = with_feature("hint", "number")
    told = [
        rows.with_columns(
            hint=pl.Series(rows[target].to_numpy() * 1.2 + np.random.default_rng(5).normal(size=rows.height))
        )
        for rows in (train, problem.holdout)
    ]
    fitted = problem.fit(told[0], hint)
    score = estimator.score(fitted, told[1], hint)
    facts = leakage.checks(hint, told[0])
    yield Bad(
        "the outcome in a column too noisy to be seen alone",
        planted_loss(problem, score),
        "too_good",
        problem.verdict(score, facts),
    )


def _broken(problem: Problem) -> Iterator[Bad]:
    contract, train, evidence = problem.contract, problem.train, problem.evidence
    honest = evidence.score

    def golden(rows: pl.DataFrame, fitted: Pipeline) -> list[Check]:
        return check_golden(contract, rows, problem.candidate(fitted).score_rows)

    swapped = train.with_columns(heat=pl.col("size"), size=pl.col("heat").fill_null(0.0))
    yield Bad(
        "two columns swapped by a join",
        "every row",
        "golden:the first row",
        problem.verdict(honest, golden(swapped, problem.honest)),
    )
    turned = problem.fit(train.with_columns(size=-pl.col("size")))
    yield Bad(
        "a column with the wrong sign",
        "every row",
        "golden:a larger one",
        problem.verdict(honest, golden(train, turned)),
    )
    yield Bad(
        "not a number",
        "1 row in 100",
        "sanity:finite",
        problem.verdict(np.where(np.arange(len(honest)) % 100 == 0, np.nan, honest)),
    )
    default = np.where(np.arange(len(honest)) % 5 < 3, evidence.y.mean(), honest)
    yield Bad("one default answer", "3 rows of 5", "sanity:constant", problem.verdict(default))

    own = estimator.fit(own_categories(contract, {}, 0), train, contract)
    facts = package.checks(problem.candidate(own))
    difference = _estimate(facts, "parity")
    yield Bad(
        "an estimator with its own categories",
        f"scores {difference:.2f} off",
        "parity",
        problem.verdict(problem.score(own), facts),
    )
    other = export(problem.champion, contract)
    yield Bad(
        "the graph of another training",
        "other golden scores",
        "loads",
        problem.verdict(honest, package.checks(problem.candidate(problem.honest, other))),
    )
    foreign = onnx.load_model_from_string(export(problem.honest, contract))
    foreign.opset_import.append(onnx.helper.make_opsetid("org.example", 1))
    graph = foreign.SerializeToString()
    yield Bad(
        "a graph that asks for foreign operators",
        "one domain",
        "loads",
        problem.verdict(honest, package.checks(problem.candidate(problem.honest, graph))),
    )
    size = len(export(problem.honest, contract)) / 2**20
    tight = contract.model_copy(update={"gate": contract.gate.model_copy(update={"max_size_mb": size / 2})})
    facts = package.checks(replace(problem, contract=tight).candidate(problem.honest))
    yield Bad("too large a graph", "twice the bound", "size", problem.verdict(honest, facts))


def _estimate(checks: list[Check], name: str) -> float:
    return float(next(each.estimate for each in checks if each.name == name) or 0)


def own_categories(contract: Contract, parameters: dict[str, Any], seed: int) -> Pipeline:
    """Boosting that is told which columns are categories: scikit-learn is right, the exported graph is not."""
    places = list(range(len(contract.numbers), len(contract.features)))
    return Pipeline([
        ("features", features.preprocess(contract)),
        ("model", HistGradientBoostingClassifier(categorical_features=places, max_iter=40, early_stopping=False, random_state=seed)),
    ])  # fmt: skip


def _first(problem: Problem) -> Iterator[Bad]:
    """First models, with no champion to be compared to."""
    y, honest, baseline = problem.evidence.y, problem.evidence.score, problem.evidence.baseline
    random = np.random.default_rng(7)
    for name, score, check in (
        ("the base rate with noise", np.clip(y.mean() + random.normal(scale=0.01, size=len(y)), 0, 1), "floor:gain"),
        ("ranks hardly better than chance", expit(0.2 * logit(honest) + random.normal(size=len(y)) - 0.6), "floor:auc"),
        ("worse than the linear baseline", 0.6 * baseline + 0.4 * y.mean(), "floor:baseline"),
        ("logits shifted by one", expit(logit(honest) + 1), "floor:calibration"),
    ):
        found = problem.verdict(score, champion=None)
        yield Bad(name, f"{_estimate(found.checks, check):.3f}", check, found)
    short = problem.on(problem.holdout.filter(pl.col("at") < pl.col("at").min() + pl.duration(days=20)))
    yield Bad(
        "held out for too short a time",
        f"{len(np.unique(short.evidence.day))} days",
        "holdout",
        short.verdict(short.evidence.score),
    )


def retrainings(problem: Problem, number: int) -> list[Verdict]:
    """Honest models: the champion's training again, each on another nine days of ten."""
    return [problem.verdict(problem.score(problem.retrained(seed))) for seed in range(1, number + 1)]


EFFECTS: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    "surer": lambda score, _, size: expit((1 + size) * logit(score)),
    "towards the base rate": lambda score, _, size: (1 - size) * score + size * score.mean(),
    "shifted": lambda score, _, size: expit(logit(score) + size),
    "one row in ten": lambda score, rows, size: np.where(
        rows % 10 == 0, expit(logit(score) - 10 * size * logit(score)), score
    ),
}


def operating_curve(
    problem: Problem, holdouts: list[pl.DataFrame], effect: str, sizes: list[float]
) -> list[dict[str, float]]:
    """For effects of growing size: the loss they cost on all held-out rows together, and how often the gate refuses them."""
    points = []
    samples = [problem.on(rows) for rows in holdouts]
    for size in sizes:
        costs, verdicts = [], []
        for sample in samples:
            honest, champion = sample.evidence.score, sample.evidence.champion
            assert champion is not None
            score = EFFECTS[effect](honest, np.arange(len(honest)), size)
            losses = [evaluation.loss(sample.contract, sample.evidence.y, s).mean() for s in (score, champion)]
            costs.append(losses[0] - losses[1])
            verdicts.append(sample.verdict(score))
        refusing = [{c.name.partition(":")[0] for c in v.checks if c.outcome == "fail"} for v in verdicts]
        points.append({
            "size": size,
            "loss_difference": round(float(np.mean(costs)), 4),
            "refused": round(sum(v.decision == "refused" for v in verdicts) / len(verdicts), 3),
            **{name: round(sum(name in names for names in refusing) / len(refusing), 3) for name in ("loss", "calibration", "slice")},
        })  # fmt: skip
    return points


def fresh_holdouts(number: int, days: int, rows_a_day: int) -> list[pl.DataFrame]:
    """Held-out parts that share nothing but the problem."""
    return [data.canonical(synthetic.frame(days, rows_a_day, seed=100 + seed)) for seed in range(number)]


def sliding_holdouts(rows: pl.DataFrame, contract: Contract, days: int, step: int) -> list[pl.DataFrame]:
    day = data.days(rows, contract)
    starts = range(int(day.min()), int(day.max()) - days + 2, step)
    return [rows.filter(pl.Series((day >= start) & (day < start + days))) for start in starts]


SIZES = {
    "surer": [0.0, 0.1, 0.25, 0.5, 0.75, 1.0],
    "towards the base rate": [0.0, 0.1, 0.2, 0.3, 0.4, 0.6],
    "shifted": [0.0, 0.1, 0.2, 0.3, 0.4, 0.6],
    "one row in ten": [0.0, 0.05, 0.1, 0.15, 0.2],
}


def _names(verdicts: list[Verdict]) -> dict[str, int]:
    found: dict[str, int] = {}
    for verdict in verdicts:
        for check in verdict.checks:
            if check.outcome == "fail":
                found[check.name] = found.get(check.name, 0) + 1
    return found


def prove(folder: Path) -> dict[str, Any]:
    problem = synthetic_problem()
    bad = list(bad_models(problem))
    again = {"synthetic": retrainings(problem, 100)}
    wide = fresh_holdouts(100, 28, 200)
    curves: dict[str, Any] = {
        "synthetic": {effect: operating_curve(problem, wide, effect, sizes) for effect, sizes in SIZES.items()}
    }
    if found := own_problem(folder):
        own, later = found
        again[own.contract.model] = retrainings(own, 100)
        months = sliding_holdouts(later, own.contract, 28, 7)
        curves[own.contract.model] = {
            effect: operating_curve(own, months, effect, sizes) for effect, sizes in SIZES.items()
        }
    missed = [f"{b.name}: {b.check} did not refuse it" for b in bad if not b.caught]
    refused = {name: sum(v.decision == "refused" for v in verdicts) for name, verdicts in again.items()}
    missed += [f"{n} of 100 honest retrainings refused on {name}" for name, n in refused.items() if n > 5]
    honest = problem.verdict(problem.evidence.score)
    missed += [] if honest.decision == "passed" else [f"the honest retraining is refused: {honest.reasons}"]
    return {
        "holds": not missed and len(bad) >= 20,
        "reason": "; ".join(missed),
        "bad_models": len(bad),
        "refused_by_their_check": sum(b.caught for b in bad),
        "bad": [
            {"fault": b.name, "planted": b.planted, "check": b.check, "refused_by": _names([b.verdict])} for b in bad
        ],
        "retrainings": {name: {"of": 100, "refused": n, "by": _names(again[name])} for name, n in refused.items()},
        "operating_curve": curves,
    }
