from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import expit

from mlops.bundle import Bundle
from mlops.contract import Contract
from mlops.errors import UserError
from mlops.model import Model
from tests import synthetic
from tests.proofs import gate as proof
from tests.proofs.gate import Problem
from training import evaluation
from training.gate import Evidence, decide, evidence


@pytest.fixture(scope="module")
def problem() -> Problem:
    return proof.synthetic_problem(rows_a_day=120)


def test_an_honest_retraining_passes(problem: Problem) -> None:
    verdict = problem.verdict(problem.evidence.score)
    assert verdict.decision == "passed", verdict.reasons
    assert {check.name.partition(":")[0] for check in verdict.checks} >= {
        "sanity",
        "floor",
        "holdout",
        "loss",
        "too_good",
        "slice",
        "calibration",
        "fairness",
    }


def test_each_bad_model_is_refused_by_the_check_meant_for_it(problem: Problem) -> None:
    bad = list(proof.bad_models(problem))
    assert len(bad) >= 20
    assert [(b.name, b.check) for b in bad if not b.caught] == []
    assert all(reason.partition(": ")[2] for b in bad for reason in b.verdict.reasons), "each refusal says why"


def test_retrainings_on_nine_days_of_ten_pass(problem: Problem) -> None:
    refused = [verdict.reasons for verdict in proof.retrainings(problem, 6) if verdict.decision != "passed"]
    assert len(refused) <= 1, refused


def test_the_larger_the_loss_the_surer_the_refusal(problem: Problem) -> None:
    holdouts = proof.fresh_holdouts(4, 28, 200)
    none, little, much = proof.operating_curve(problem, holdouts, "towards the base rate", [0.0, 0.2, 0.6])
    assert none["refused"] <= 1 / 4
    assert none["refused"] <= little["refused"] <= much["refused"] == 1.0


def test_the_same_model_is_as_good_as_itself(problem: Problem) -> None:
    champion = problem.evidence.champion
    assert champion is not None
    assert problem.verdict(champion).decision == "passed"


def test_a_model_tied_with_the_linear_baseline_is_not_refused_for_it(problem: Problem) -> None:
    baseline = problem.evidence.baseline
    rounded = baseline.astype(np.float32).astype(float)
    assert "floor:baseline" not in _refusing(problem, rounded)
    assert "floor:baseline" in _refusing(problem, 0.6 * baseline + 0.4 * problem.evidence.y.mean())


def test_a_slice_with_too_few_rows_is_shown_as_untestable(problem: Problem) -> None:
    colors = problem.evidence.groups["color"].copy()
    colors[np.flatnonzero(colors == "grey")[150:]] = "blue"
    verdict = problem.verdict(problem.evidence.score, groups=problem.evidence.groups | {"color": colors})
    assert verdict.untestable == ["slice:color=grey"]


def test_a_chance_error_of_a_small_table_is_no_miscalibration(problem: Problem) -> None:
    """45 rows of a perfectly calibrated model show an error of 0.15 in ten bins."""
    random = np.random.default_rng(0)
    refused, raw = 0, []
    for _ in range(40):
        score = random.beta(2, 2, 45)
        y = (random.random(45) < score).astype(float)
        verdict = decide(problem.contract, proof.Evidence(y=y, day=np.arange(45), score=score, baseline=score), [], {})
        check = next(c for c in verdict.checks if c.name == "floor:calibration")
        refused += check.outcome == "fail"
        raw.append(check.estimate)
    assert np.mean(raw) > problem.contract.gate.max_calibration_error
    assert refused <= 2
    wrong = replace(problem.evidence, score=np.clip(problem.evidence.score + 0.3, 0, 1), champion=None)
    assert any(c.name == "floor:calibration" and c.failed for c in decide(problem.contract, wrong, [], {}).checks)


def test_a_median_of_skewed_values_is_calibrated_and_their_mean_is_not(problem: Problem) -> None:
    contract = problem.contract.model_copy(update={"task": "regression"})
    random = np.random.default_rng(1)
    middle = random.normal(size=4000) * 5
    y = middle + random.exponential(10, 4000)
    for shift, outcome in ((10 * np.log(2), "pass"), (10 * 2, "fail")):
        score = middle + shift
        verdict = decide(contract, proof.Evidence(y=y, day=np.arange(4000) // 100, score=score, baseline=score), [], {})
        assert next(c.outcome for c in verdict.checks if c.name == "floor:calibration") == outcome


def _refusing(problem: Problem, score: np.ndarray) -> set[str]:
    return {check.name for check in problem.verdict(score, champion=None).checks if check.failed}


@pytest.mark.parametrize(
    ("rate", "rows"), [(0.5, 20_000), (0.1, 40_000), (0.0056, 200_000)], ids=["balanced", "some", "fraud"]
)
def test_rare_events_and_balanced_classes_are_judged_alike(rate: float, rows: int) -> None:
    random = np.random.default_rng(0)
    signal = random.normal(scale=1.2, size=rows)
    shift = brentq(lambda shift: expit(signal + shift).mean() - rate, -20, 20)
    fair = expit(signal + shift)
    y, day = (random.random(rows) < fair).astype(float), np.arange(rows) % 60
    contract = Contract.model_validate(synthetic.contract_yaml(slices=[], features={"size": {"type": "number"}}))
    first = Evidence(y, day, fair, fair)
    assert decide(contract, first, [], {}).decision == "passed"
    worthless = Evidence(y, day, np.clip(rate + random.normal(scale=rate / 50, size=rows), 1e-6, 1), fair)
    assert any(reason.startswith("floor:gain") for reason in decide(contract, worthless, [], {}).reasons)
    weaker = expit(0.4 * signal + brentq(lambda shift: expit(0.4 * signal + shift).mean() - rate, -20, 20))
    unit = evaluation.scale(contract, y)
    gains = [1 - evaluation.loss(contract, y, score, unit).mean() for score in (fair, weaker)]
    assert gains[1] < 0.75 * gains[0]
    reasons = decide(contract, Evidence(y, day, weaker, weaker, champion=fair), [], {}).reasons
    assert any(reason.startswith("loss") for reason in reasons), (gains, reasons)
    assert "this hold-out shows differences above" in " ".join(reasons)
    assert not any(
        reason.startswith("loss")
        for reason in decide(contract, Evidence(y, day, fair, fair, champion=fair), [], {}).reasons
    )


def test_what_the_champion_needs_and_nobody_has_is_named(first_bundle: Bundle) -> None:
    """A feature was removed from the contract: the two could not be compared."""
    champion = Model(first_bundle, first_bundle.digest)
    rows = synthetic.frame().drop("size", "heat")
    with pytest.raises(UserError, match=r"features is 'heat, size': .*keep it in the contract"):
        evidence(first_bundle.contract, rows, SimpleNamespace(), champion)  # ty: ignore[invalid-argument-type]


def test_on_days_that_are_too_hard_for_the_champion_its_own_value_is_the_floor(problem: Problem) -> None:
    hard = problem.contract.model_copy(
        update={"gate": problem.contract.gate.model_copy(update={"min_gain": 0.9, "min_auc": 0.99})}
    )
    alone = replace(problem.evidence, champion=None)
    assert {"floor:gain", "floor:auc"} <= {c.name for c in decide(hard, alone, [], {}).checks if c.failed}
    served = replace(problem.evidence, champion=problem.evidence.score)
    assert not [c.name for c in decide(hard, served, [], {}).checks if c.failed and c.name.startswith("floor")]
