"""A champion with an intercept in its graph: what it scores, what of its bundle moves along, and how it is judged."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import special

from mlops.bundle import Bundle, canonical
from mlops.contract import Contract, Window
from mlops.model import Model
from mlops.sandbox import TOLERANCE, run_in_sandbox
from tests import live_log, synthetic
from training import data, features, package, recalibration
from training.data import Split
from training.package import Candidate
from training.recalibration import fit_intercept, recalibrated, shifted, with_intercept
from training.validation import typed

TASKS = ("binary", "regression")
each_task = pytest.mark.parametrize("task", TASKS)


def contract(task: str, **changes: Any) -> Contract:
    return Contract.model_validate(live_log.contract_yaml(task, **changes))


def rows(task: str, days: int = live_log.DAYS, **changes: Any) -> pl.DataFrame:
    """All that the platform knows: from the first day of the log on the world is another."""
    whole = live_log.rows(days=days)
    lately = live_log.live(whole)
    whole = pl.concat([whole.filter(~pl.col("at").is_in(lately["at"].implode())), live_log.shifted(lately)])
    return data.canonical(data.select(typed(whole, contract(task))[0], contract(task)))


@pytest.fixture(scope="module")
def champions() -> dict[str, Bundle]:
    return {task: synthetic.build(contract(task), live_log.rows()) for task in TASKS}


@pytest.fixture(scope="module")
def candidates(champions: dict[str, Bundle]) -> dict[str, Candidate]:
    return {task: build(champions[task], newest(contract(task))) for task in TASKS}


def newest(contract: Contract) -> Split:
    found = rows(contract.task)
    return data.split(found, contract, *data.newest_windows(found, contract))


def build(champion: Bundle, split: Split) -> Candidate:
    return recalibration.build(split, package.provenance(champion.contract, split, 0, {}), champion)


def scores(bundle: Bundle, frame: pl.DataFrame) -> np.ndarray:
    return Model(bundle, "").score_arrays(features.arrays(frame, bundle.contract)).astype(float)


def moved(task: str, before: np.ndarray, intercept: float) -> np.ndarray:
    """The formula, written anew."""
    return before + intercept if task == "regression" else 1 / (1 + (1 - before) / before * np.exp(-intercept))


@each_task
@pytest.mark.parametrize("estimator", ["boosting", "linear"])
@pytest.mark.parametrize("intercept", [-2.5, -0.1, 0.0, 0.7, 4.0])
def test_the_graph_computes_the_formula(task: str, estimator: str, intercept: float) -> None:
    champion, frame = synthetic.build(contract(task), live_log.rows(), estimator=estimator), rows(task)
    graph = with_intercept(champion.contract, champion.files["model.onnx"], intercept)
    before, after = scores(champion, frame), scores(Bundle(champion.files | {"model.onnx": graph}), frame)
    assert np.abs(after - moved(task, before, intercept)).max() <= 1e-6 * max(1.0, float(np.abs(after).max()))
    assert (np.argsort(after, kind="stable") == np.argsort(before, kind="stable")).mean() > 0.99, "the ranking stays"


@each_task
def test_twice_adds_up(task: str, champions: dict[str, Bundle]) -> None:
    champion, frame = champions[task], rows(task)
    graph = champion.files["model.onnx"]
    for step in (0.4, -0.1, 0.25):
        graph = with_intercept(champion.contract, graph, step)
    once = with_intercept(champion.contract, champion.files["model.onnx"], 0.55)
    first, second = (scores(Bundle(champion.files | {"model.onnx": each}), frame) for each in (graph, once))
    assert np.abs(first - second).max() <= 1e-6 * max(1.0, float(np.abs(first).max()))
    assert len(graph) == len(once), "nothing is piled up"


def test_certain_scores_stay_certain_and_finite() -> None:
    binary = contract("binary")
    assert shifted(binary, np.array([0.0, 1.0]), 3.0) == pytest.approx([2.0e-5, 1 - 5e-8], rel=0.1)
    assert fit_intercept(binary, np.array([0.0, 1.0, 1.0, 0.0]), np.array([1.0, 1.0, 1.0, 0.0])) > 0


@pytest.mark.parametrize("base", [0.0, 0.003, 0.4, 1.0])
def test_the_intercept_gives_the_share_that_came_to_pass(base: float) -> None:
    random = np.random.default_rng(0)
    score = special.expit(random.normal(size=5000))
    y = (random.random(5000) < base).astype(float)
    after = shifted(contract("binary"), score, fit_intercept(contract("binary"), score, y))
    assert after.mean() == pytest.approx(y.mean(), abs=1e-5)


def test_the_intercept_of_amounts_is_the_median_of_what_is_lacking() -> None:
    y, score = np.array([1.0, 2.0, 30.0]), np.array([0.0, 0.0, 0.0])
    assert fit_intercept(contract("regression"), score, y) == 2.0


@each_task
def test_it_takes_away_the_gap_of_the_newest_days(
    task: str, champions: dict[str, Bundle], candidates: dict[str, Candidate]
) -> None:
    champion, candidate, held = champions[task], candidates[task], newest(contract(task)).holdout.frame
    day = data.days(held, champion.contract)
    lately = day > day.max() - champion.contract.retraining.window_days
    y = held[champion.contract.target].to_numpy()
    before, after = scores(champion, held), candidate.scores
    if task == "binary":
        assert abs((before - y)[lately].mean()) > 0.05
        assert abs((after - y)[lately].mean()) < 1e-5
    else:
        assert abs(np.median((y - after)[lately])) < 1e-3 < 5 < np.median((y - before)[lately])


@each_task
def test_the_gate_sees_scores_as_callers_would_have_got_them(
    task: str, champions: dict[str, Bundle], candidates: dict[str, Candidate]
) -> None:
    """Of each held-out day by an intercept from a window that had ended a rollout before: computed anew."""
    terms, found, split = contract(task), candidates[task].unseen, newest(contract(task))
    whole = pl.concat([split.train.frame, split.holdout.frame])
    day, score, y = data.days(whole, terms), scores(champions[task], whole), whole[terms.target].to_numpy()
    held = data.days(split.holdout.frame, terms)
    assert found is not None
    for each in np.unique(held):
        end = each - terms.rollout_days
        window = (day >= end - terms.retraining.window_days) & (day < end)
        assert len(np.unique(day[window])) == terms.retraining.window_days
        intercept = fit_intercept(terms, score[window], y[window])
        assert found[held == each] == pytest.approx(moved(task, score[day == each], intercept), rel=1e-5, abs=1e-5)
    assert np.abs(found - candidates[task].scores).max() > 1e-3, "they are not those of the graph, which has seen them"


@each_task
def test_it_is_refused_without_enough_days_that_the_champion_has_not_seen(
    task: str, champions: dict[str, Bundle]
) -> None:
    terms = contract(task)
    few = rows(task, live_log.KNOWN + terms.recalibration_days - terms.retraining.window_days)
    split = data.split(few, terms, *data.newest_windows(few, terms))
    until = f"2024-01-01..{split.train.window.end}"
    told = champions[task].json("provenance.json") | {"windows": {"train": until, "holdout": until}}
    late = Bundle(champions[task].files | {"provenance.json": canonical(told)})
    with pytest.raises(Exception, match=f"needs {terms.recalibration_days} days that the champion was not trained on"):
        build(late, split)


@each_task
def test_what_of_the_bundle_follows_from_the_scores_moves_along(
    task: str, champions: dict[str, Bundle], candidates: dict[str, Candidate]
) -> None:
    champion, made = champions[task], candidates[task].bundle
    intercept, train = (
        candidates[task].parameters["intercept"],
        rows(task).filter(pl.col("at").dt.date() < pl.date(2024, 3, 1)),
    )
    before, after = champion.json("profile.json"), made.json("profile.json")
    edges = before["bins"]["score"].pop("edges"), after["bins"]["score"].pop("edges")
    assert before == after, "all else stays, the counts of each day too"
    assert edges[1] == pytest.approx(moved(task, np.array(edges[0]), intercept).tolist())
    bins = [np.searchsorted(each, scores(bundle, train)) for each, bundle in zip(edges, (champion, made), strict=True)]
    assert (bins[0] == bins[1]).mean() > 0.99, "a row stays in its bin, but for roundings"
    golden = made.json("golden.json")
    asked = [Model(made, "").schema.row(row) for row in golden["rows"]]
    assert golden["scores"] == pytest.approx(Model(made, "").score(asked), abs=TOLERANCE)
    assert golden["scores"] != champion.json("golden.json")["scores"]
    assert made.contract == champion.contract


def test_edges_that_lie_very_close_do_not_become_one(champions: dict[str, Bundle]) -> None:
    """A bundle with such bins could not be read."""
    profile = champions["binary"].json("profile.json")
    profile["bins"]["score"]["edges"] = edges = [1e-9, 1e-8, 1e-7, 0.2, 0.5, 0.7, 0.9, 0.999, 1 - 1e-9]
    champion = Bundle(champions["binary"].files | {"profile.json": canonical(profile)})
    made = recalibrated(champion, 2.0, {}, champion.json("provenance.json")).json("profile.json")["bins"]["score"][
        "edges"
    ]
    assert len(set(made)) == len(edges)
    assert made == sorted(made)


@each_task
def test_it_is_a_bundle_as_any_other(task: str, champions: dict[str, Bundle], candidates: dict[str, Candidate]) -> None:
    candidate, champion = candidates[task], champions[task]
    assert run_in_sandbox(candidate.bundle, candidate.digest).latency_ms > 0
    assert [each.outcome for each in package.checks(candidate)] == ["pass"] * 4, "parity, and that it loads"
    origin, split = candidate.bundle.json("provenance.json"), newest(contract(task))
    about = origin["recalibration"]
    assert (about["of"], about["intercept"]) == (champion.digest, candidate.parameters["intercept"])
    assert Window.parse(origin["windows"]["train"]).end == split.holdout.window.end, "the next hold-out begins after it"
    assert origin["windows"]["holdout"] == str(split.holdout.window)
    assert candidate.bundle.files["card.md"].startswith(champion.files["card.md"])
    assert candidate.baseline.tolist() == scores(champion, split.holdout.frame).tolist()


@each_task
def test_the_same_rows_give_the_same_digest(
    task: str, champions: dict[str, Bundle], candidates: dict[str, Candidate]
) -> None:
    assert build(champions[task], newest(contract(task))).digest == candidates[task].digest != champions[task].digest


def test_a_second_one_names_the_first_and_says_so_once(candidates: dict[str, Candidate]) -> None:
    first = candidates["binary"]
    second = recalibrated(first.bundle, 0.1, {"of": first.digest}, first.bundle.json("provenance.json"))
    assert second.files["card.md"].count(b"Recalibrated: ") == 1
    assert second.json("provenance.json")["recalibration"] == {"of": first.digest, "intercept": 0.1}
    frame = newest(contract("binary")).holdout.frame
    assert scores(second, frame) == pytest.approx(moved("binary", first.scores, 0.1), abs=1e-6)


def test_without_a_time_each_block_is_scored_by_the_others(champions: dict[str, Bundle]) -> None:
    made = live_log.contract_yaml()
    del made["time"], made["outcome_at"], made["features"]["heat"]["known_at"]
    timeless = Contract.model_validate(made | {"windows": {"train": "0..0.6", "holdout": "0.6..1"}})
    frame = data.canonical(data.select(typed(live_log.shifted(live_log.rows()), timeless)[0], timeless))
    split = data.split(frame, timeless)
    champion = synthetic.build(timeless, live_log.rows())
    candidate = build(champion, split)
    before, y = scores(champion, split.holdout.frame), split.holdout.frame["y"].to_numpy()
    block = data.days(split.holdout.frame, timeless)
    own = block == block[0]
    expected = shifted(timeless, before[own], fit_intercept(timeless, before[~own], y[~own]))
    assert candidate.unseen is not None
    assert candidate.unseen[own] == pytest.approx(expected)
    assert candidate.bundle.json("provenance.json")["windows"]["train"] == "0.0..0.6"
