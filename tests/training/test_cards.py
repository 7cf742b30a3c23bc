"""What a training leaves for people: the gate's report, the model card, the data card."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import mlflow
import numpy as np
import polars as pl
import pytest
from scipy.special import expit, logit

from mlops.contract import Contract
from mlops.environment import Environment
from mlops.tracking import Tracking
from mlops.verdict import Verdict
from tests import synthetic
from tests.proofs import gate as proof
from tests.proofs.gate import Problem
from training import cards, data, evaluation, gate, intervals, package, pipeline, report
from training.gate import Resampling


@pytest.fixture(scope="module")
def problem() -> Problem:
    return proof.synthetic_problem(rows_a_day=120)


def text(page: str) -> str:
    """What a reader sees, one space between words."""
    body = re.sub(r"<style>.*?</style>|data:image[^\"]*", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_intervals_are_those_of_the_metrics_computed_on_resampled_days(problem: Problem, task: str) -> None:
    contract, y, score = problem.contract, problem.evidence.y, problem.evidence.score
    if task == "regression":
        contract = Contract.model_validate(synthetic.contract_yaml("regression"))
        y, score = 10 * y + problem.holdout["size"].to_numpy(), 8 * score
    weights = Resampling(problem.evidence.day)
    weights.weights = weights.weights[:60]
    taken = [np.repeat(np.arange(len(y)), each[weights.day].astype(int)) for each in weights.weights]
    resampled = [evaluation.summary(contract, y[rows], score[rows]) for rows in taken]
    found = intervals.of_metrics(contract, y, score, weights)
    assert set(found) == set(resampled[0])
    unit = evaluation.scale(contract, y)
    for name, (low, point, high) in found.items():
        tolerance = {"auc": 2e-4, "average_precision": 2e-3}.get(name, 1e-9)  # of these only ranks are counted
        assert point == pytest.approx(evaluation.summary(contract, y, score)[name], abs=tolerance), name
        # The unit of the loss and the bins of the calibration error stay those of all rows.
        if name not in ("loss", "gain", "calibration_error"):
            expected = np.quantile([each[name] for each in resampled], [0.025, 0.975])
            assert (low, high) == pytest.approx(expected, abs=tolerance), name
    raw = "log_loss" if task == "binary" else "mean_absolute_error"
    assert found["loss"] == pytest.approx(np.array(found[raw]) / unit)


def test_groups_have_figures_of_their_own_rows_unless_they_are_few(problem: Problem) -> None:
    evidence, contract = problem.evidence, problem.contract
    a = evidence.groups["group"] == "a"
    rare = evidence.groups["color"].copy()
    rare[:30] = "rare"
    honest = evidence.score
    evidence = replace(
        evidence, score=np.where(a, expit(logit(honest) + 0.8), honest), groups=evidence.groups | {"color": rare}
    )
    weights = Resampling(evidence.day)
    groups = {(g.column, g.value): g for g in intervals.of_groups(contract, evidence, weights)}
    assert groups["color", "rare"].figures == {}
    assert (groups["color", "rare"].rows, groups["color", "rare"].days) == (30, len(set(evidence.day[:30])))
    assert {column for column, _ in groups} == {"color", "region", "group"}
    gap = groups["group", "a"].figures["calibration gap"]
    assert gap[1] == pytest.approx((evidence.score - evidence.y)[a].mean())
    assert gap[0] > 0.05, "scores that are too high are seen to be"
    low, _, high = groups["group", "b"].figures["calibration gap"]
    assert low < 0 < high
    for value, inside in (("a", a), ("b", ~a)):
        positive = inside & (evidence.y == 1)
        rate = groups["group", value].figures["true-positive rate"]
        assert rate[1] == pytest.approx((evidence.score >= contract.threshold)[positive].mean())
        assert rate[0] < rate[1] < rate[2]
    region = groups["region", "north"].figures["loss"][1]
    inside = evidence.groups["region"] == "north"
    loss = evaluation.loss(contract, evidence.y, evidence.score, evaluation.scale(contract, evidence.y))
    assert region == pytest.approx(loss[inside].mean())


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of a training with a champion, a refusal, refused rows, and a category that is no plain word."""
    folder = tmp_path_factory.mktemp("cards")
    color = pl.when(pl.int_range(pl.len()) % 97 == 0).then(pl.lit("<i>teal</i>")).otherwise("color").alias("color")
    contract = synthetic.contract_yaml(question="Will it & should it?")
    made = synthetic.write_model(folder / "models", synthetic.frame().with_columns(color), contract)
    rows = data.canonical(made.load())
    split = data.split(rows, made.contract)
    origin = package.provenance(made.contract, split, 7, {"max_iter": 20})
    candidate = package.build(replace(made, parameters={"max_iter": 20}), split, origin)
    evidence = gate.evidence(made.contract, split.holdout.frame, candidate, None)
    champion = evaluation.summary(made.contract, evidence.y, evidence.baseline)
    evidence = replace(evidence, champion=evidence.baseline)
    verdict = Verdict("refused", ["loss: planted"], [], [])
    lineage = {"champion": "c" * 64, "commit": "0123abc", "run": "r1"}
    (folder / "quarantine.csv").write_text('row,size,reasons\n1,x,"a, b"\n2,"two\nlines",c\n')
    report.write(folder, candidate, split, evidence, verdict, lineage, folder / "quarantine.csv")
    found = {path.name: path.read_text() for path in folder.glob("*.html")}
    return found | {"report.json": (folder / "report.json").read_text(), "champion": json.dumps(champion)}


def test_the_report_has_the_champion_on_the_same_rows(pages: dict[str, str]) -> None:
    shown, champion = text(pages["report.html"]), json.loads(pages["champion"])
    assert "champion, same rows" in shown
    assert f"{champion['loss']:.5g}" in shown
    assert 'alt="loss by day"' in pages["report.html"]
    assert all(part in shown for part in ("estimator HistGradientBoostingClassifier", "max_iter 20"))
    assert all(part in shown for part in ("train_rows 3600", "holdout_rows 2400", "commit 0123abc", "run r1"))
    kept = json.loads(pages["report.json"])
    assert kept["champion"]["loss"] == pytest.approx(champion["loss"])
    for name, (low, high) in kept["intervals"].items():
        assert low <= kept["metrics"][name] <= high, name


def test_the_model_card_says_what_the_model_is_for_and_where_it_ends(pages: dict[str, str]) -> None:
    shown = text(pages["card.html"])
    for part in (
        "Will it & should it?", "binary, target y", "gate refused: loss: planted; every check", "mlops check",
        "(3600 rows), measured on", "2400 rows, 40 days", "color = red", "region = north", "group = a",
        "60 minutes before the event ( at )", "never among its columns: settled", "[-50.0, 50.0]", "scored as other, and",
        "seed 7", "scikit-learn", "max_iter 20", "commit 0123abc", "run r1", f"champion {'c' * 64}",
    ):  # fmt: skip
        assert part in shown, part
    assert re.search(r"Too few rows or days: color = <i>teal</i> \(\d+ rows, \d+ days\)\.", shown)
    assert "<i>teal" not in pages["card.html"], "what is in the data is text"


def test_the_data_card_describes_the_training_rows(pages: dict[str, str]) -> None:
    shown = text(pages["data.html"])
    train = data.split(
        data.canonical(synthetic.frame()), Contract.model_validate(synthetic.contract_yaml())
    ).train.frame
    heat, size = train["heat"], train["size"]
    missing = f"{100 * heat.null_count() / train.height:.2f} %"
    low, middle, high = (f"{value:.6g}" for value in (heat.min(), heat.median(), heat.max()))
    assert f"heat feature Float64 heat_at {missing} {heat.n_unique() - 1} {low} … {middle} … {high}" in shown
    assert f"size feature Float64 request 0.00 % {size.n_unique()} " in shown
    assert "member feature Boolean request 0.00 % 2 " in shown
    assert re.search(r"region feature String request 0.00 % 2 (north|south) 5\d\.\d%, (north|south) 4\d\.\d%", shown)
    first = synthetic.frame().filter(pl.col("at").dt.month() == 1)
    assert f"2024-01 {first.height} {first['y'].mean():.4g}" in shown
    assert "2 rows were refused" in shown


def test_what_names_a_person_is_on_no_data_card(pages: dict[str, str]) -> None:
    """`group` is hashed in the prediction log, `customer` is the entity."""
    assert not re.search(r"\bc\d+ \d+\.\d%", text(pages["data.html"]))
    assert text(pages["data.html"]).count("not shown") == 2


def test_pages_are_kept_here_in_the_bucket_and_with_the_run(tracked: Environment, tmp_path: Path) -> None:
    raw = synthetic.contract_yaml(model="kept", quarantine_limit=0.1)
    rows = synthetic.frame(days=60, rows_a_day=40)
    bad = rows.with_columns(size=pl.when(pl.int_range(pl.len()) < 5).then(99.0).otherwise("size"))
    made = synthetic.write_model(tmp_path / "models", bad, raw)
    trained = pipeline.train(tracked, replace(made, parameters={"max_iter": 20}), say=lambda _: None)
    kept = {
        name: (trained.report.parent / name).read_bytes()
        for name in ("report.html", "card.html", "data.html", "report.json")
    }
    folder = f"models/kept/reports/{trained.digest}"
    assert {key.rsplit("/", 1)[-1]: tracked.store.get(key) for key in tracked.store.keys(folder)} == kept
    [run] = Tracking(tracked.tracking).runs("kept", limit=9)
    with_run = Path(mlflow.MlflowClient(tracked.tracking).download_artifacts(run["run"], "", str(tmp_path)))
    assert {name: (with_run / name).read_bytes() for name in kept} == kept
    assert f"run {run['run']}" in text(kept["card.html"].decode())
    assert "5 rows were refused" in text(kept["data.html"].decode())
    again = synthetic.write_model(tmp_path / "models", rows, raw)
    data.prepare(tracked, again)
    assert not (tracked.home / "reports" / "kept" / "quarantine.csv").exists(), "it was the training's before"


def test_without_fairlearn_the_cards_own_figures_stand_alone(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = intervals.of_groups(problem.contract, problem.evidence, Resampling(problem.evidence.day))
    monkeypatch.setattr(cards, "find_spec", lambda _: None)
    assert cards.fairlearn(problem.contract, problem.evidence, [g for g in groups if g.column == "group"]) is None


@pytest.mark.skipif(find_spec("fairlearn") is None, reason="needs fairlearn: the extra `fairness`")
def test_fairlearn_agrees_with_the_cards_own_figures(problem: Problem) -> None:
    evidence = problem.evidence
    groups = [
        g for g in intervals.of_groups(problem.contract, evidence, Resampling(evidence.day)) if g.column == "group"
    ]
    found = cards.fairlearn(problem.contract, evidence, groups)
    assert found is not None
    predicted = evidence.score >= problem.contract.threshold
    for group in groups:
        inside = evidence.groups["group"] == group.value
        row = found["groups"][group.value]
        assert row["true positive rate"] == pytest.approx(group.figures["true-positive rate"][1])
        assert row["selection rate"] == pytest.approx(predicted[inside].mean())
        assert row["false positive rate"] == pytest.approx(predicted[inside & (evidence.y == 0)].mean())
    rates = [name for name in found["difference"] if name != "selection rate"]
    assert found["odds"] == pytest.approx(max(found["difference"][name] for name in rates))
    assert cards.fairlearn(problem.contract, evidence, groups[:1]) is None
