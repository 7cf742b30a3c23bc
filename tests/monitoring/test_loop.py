"""From a log that says so to a new model beside the champion: through the command, the gate, MLflow and the release log."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from threading import Event as Flag
from typing import Any

import mlflow
import polars as pl
import pytest
import yaml
from prometheus_client import CollectorRegistry

from cli import main as cli
from mlops import environment as environments
from mlops import promotion
from mlops.attestations import attest, require_gate
from mlops.bundle import Bundle
from mlops.contract import Contract, Window
from mlops.environment import Environment
from mlops.errors import VerificationError
from mlops.registered_model import RegisteredModel
from mlops.retraining import RetrainingLog
from mlops.sandbox import Checked
from monitoring.approver import Approver
from monitoring.fresh import read_fresh
from monitoring.loop import Loop
from tests import live_log, synthetic
from tests.live_log import Traffic
from tests.synthetic import MODEL
from training import pipeline
from training.definition import ModelDefinition, load_definition

CONTRACT = Contract.model_validate(live_log.contract_yaml())
FIRST = synthetic.START.date() + timedelta(live_log.KNOWN)  # of the log
Run = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture(scope="module")
def champion() -> Bundle:
    return synthetic.build(CONTRACT, live_log.rows())


def define(models: Path, rows: pl.DataFrame, **parameters: Any) -> ModelDefinition:
    made = synthetic.write_model(models, rows, live_log.contract_yaml())
    (made.folder / "parameters.yaml").write_text(yaml.safe_dump({"max_iter": 20} | parameters))
    return load_definition(MODEL, made.folder)


def known(rows: pl.DataFrame) -> pl.DataFrame:
    """What load() has: all before the log."""
    return rows.filter(~pl.col("at").is_in(live_log.live(rows)["at"].implode()))


@pytest.fixture
def mlops(
    tracked: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Run]:
    """The command: its exit code and the first thing that it answers."""
    for name in ("home", "bucket", "keyring", "endpoint", "tracking"):
        monkeypatch.setenv(f"MLOPS_{name.upper()}", str(getattr(tracked, name)))
    monkeypatch.setattr(environments, "MODELS", tmp_path / "models")
    before = signal.getsignal(signal.SIGTERM)

    def run(*words: str) -> tuple[int, dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", ["mlops", "--json", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        code = end.value.code if isinstance(end.value.code, int) else 0
        return code, json.loads(next(iter(capsys.readouterr().out.splitlines()), "{}"))

    yield run
    signal.signal(signal.SIGTERM, before)


def loop(model: RegisteredModel) -> tuple[Loop, Callable[[str], float | None]]:
    registry = CollectorRegistry()
    return Loop(model, registry, Flag()), lambda result: registry.get_sample_value(
        "mlops_retraining_result", {"result": result}
    )


def serve(environment: Environment, bundle: Bundle) -> RegisteredModel:
    model = environment.model(MODEL)
    promotion.release(model, synthetic.publish(environment, bundle), "first")
    return model


def test_a_gap_in_the_log_becomes_a_recalibrated_challenger(
    mlops: Run, tracked: Environment, tmp_path: Path, champion: Bundle
) -> None:
    rows = live_log.rows()
    define(tmp_path / "models", known(rows))
    assert mlops("retrain", "--if-due") == (0, {"due": False}), "nothing is released yet"
    model = serve(tracked, champion)
    assert mlops("retrain", "--if-due") == (0, {"due": False})
    Traffic(live_log.shifted(live_log.live(rows))).log(model)
    code, found = mlops("retrain", "--if-due")
    assert (code, found["action"], found["gate"], found["reasons"]) == (0, "recalibrate", "passed", [])
    [started, passed] = RetrainingLog(model).read()
    assert (started.event, passed.event, passed.digest) == ("started", "passed", found["digest"])
    assert passed.why.startswith("scores lie -0.")
    client = mlflow.MlflowClient(tracked.tracking)
    versions = client.search_model_versions(f"name = '{MODEL}'")
    run = next(client.get_run(str(each.run_id)) for each in versions if each.tags["digest"] == found["digest"])
    assert float(run.data.params["intercept"]) > 0.2
    assert require_gate(model, found["digest"]).details["champion"] == champion.digest
    assert mlops("retrain", "--if-due") == (0, {"due": False}), "there is a pause"
    assert mlops("retrain", "--why", "impatience")[0] == 2

    steps, result = loop(model)
    steps.analyse()
    steps.retrain()
    assert (result("passed"), result("refused"), result("failed")) == (1, 0, 0)
    Approver(model).release()
    release = model.releases.current()
    assert release
    assert (release.mode, release.champion, release.challenger) == ("shadow", champion.digest, found["digest"])
    assert release.why.startswith("recalibrate: scores lie -0.")
    assert not release.paused
    Approver(model).release()
    assert len(model.releases.read()) == 2


def test_a_training_from_the_log_is_that_from_load(tracked: Environment, tmp_path: Path, champion: Bundle) -> None:
    """Rows that were requests train the very same graph as the same rows in a file."""
    rows = live_log.rows()
    rows = pl.concat([known(rows), live_log.shifted(live_log.live(rows))])
    model = serve(tracked, champion)
    Traffic(live_log.live(rows)).log(model)
    days = [FIRST + timedelta(each) for each in range(live_log.LIVE)]
    fresh = read_fresh(model, CONTRACT, days)
    assert fresh.problems == []
    older = define(tmp_path, live_log.rows())  # load() has rows of those days too: the log's count
    trained = pipeline.renew(tracked, older, "retrain", fresh.rows, lambda _: None)
    assert trained.verdict.decision == "passed", trained.verdict.reasons
    assert trained.version
    train, held = (
        Window.parse(each)
        for each in (trained.bundle.json("provenance.json")["windows"][name] for name in ("train", "holdout"))
    )
    assert (train.start, train.end, held.end) == (synthetic.START.date(), held.start, days[-1] + timedelta(1))
    assert held.start == days[-CONTRACT.gate.min_days]
    again = pipeline.train(tracked, define(tmp_path / "all", rows), train, held, say=lambda _: None)
    assert again.bundle.files["model.onnx"] == trained.bundle.files["model.onnx"]
    assert again.metrics == trained.metrics
    assert {each.name for each in trained.verdict.checks} >= {"loss", "holdout", "calibration"}, "against the champion"


def test_what_the_gate_or_the_rows_refuse_is_recorded(
    mlops: Run, tracked: Environment, tmp_path: Path, champion: Bundle
) -> None:
    rows = live_log.rows()
    define(tmp_path / "models", known(rows), max_iter=1, learning_rate=0.01)
    model = serve(tracked, champion)
    traffic = Traffic(live_log.live(rows))
    ids = traffic.log(model)
    code, found = mlops("retrain", "--why", "a test")
    assert (code, found["gate"]) == (3, "refused")
    last = RetrainingLog(model).read()[-1]
    assert (last.event, last.digest, "loss: " in last.why) == ("refused", found["digest"], True)
    steps, result = loop(model)
    steps.retrain()
    assert (result("passed"), result("refused"), result("failed")) == (0, 1, 0)
    Approver(model).release()
    assert len(model.releases.read()) == 1
    with pytest.raises(VerificationError, match="refused by the gate"):
        promotion.release(model, found["digest"], "all the same")

    # Outcomes that are sent again, otherwise: the next run, which is due by the calendar, does not even begin to fit.
    for key in model.store.keys(f"{model.folder}/retrainings"):
        model.store.delete(key)
    live_log.resend(model, dict(zip(ids[::10], [1.0 - (value or 0.0) for value in traffic.values[::10]], strict=True)))
    bundles = len(model.store.keys(f"{model.folder}/bundles"))
    code, found = mlops("retrain", "--if-due")
    assert (code, found["due"], "of the outcomes were changed" in found["refused"]) == (0, True, True)
    last = RetrainingLog(model).read()[-1]
    assert (last.event, last.action, last.digest, last.why) == ("refused", "retrain", None, found["refused"])
    assert len(model.store.keys(f"{model.folder}/bundles")) == bundles


def with_traffic(tracked: Environment, tmp_path: Path, champion: Bundle) -> tuple[ModelDefinition, RegisteredModel]:
    """A model that has served, and whose training can be changed by its folder."""
    made, model = define(tmp_path / "models", known(live_log.rows())), serve(tracked, champion)
    Traffic(live_log.live(live_log.rows())).log(model)
    return made, model


def test_a_training_that_fails_is_recorded_and_harms_nothing(
    mlops: Run, tracked: Environment, tmp_path: Path, champion: Bundle
) -> None:
    made, model = with_traffic(tracked, tmp_path, champion)
    (made.folder / "data.py").write_text("def load():\n    raise OSError('the warehouse is gone')\n")
    before = {key: model.store.get(key) for key in model.store.keys("")}
    code, found = mlops("retrain", "--if-due")
    assert (code, found["error"]["key"]) == (2, "unexpected")
    last = RetrainingLog(model).read()[-1]
    assert (last.event, last.why) == ("failed", "OSError: the warehouse is gone")
    assert {key: model.store.get(key) for key in before} == before
    assert {key.split("/")[2] for key in model.store.keys("models") if key not in before} == {"retrainings"}
    steps, result = loop(model)
    steps.retrain()
    assert (result("passed"), result("refused"), result("failed")) == (0, 0, 1)
    assert mlops("retrain", "--action", "forget")[0] == 2


def test_a_training_that_is_told_to_stop_says_so_before_it_goes(
    mlops: Run, tracked: Environment, tmp_path: Path, champion: Bundle
) -> None:
    """As a node that is drained tells it: otherwise it would count as running for hours."""
    made, model = with_traffic(tracked, tmp_path, champion)
    stopped = "import os, signal\n\n\ndef load():\n    os.kill(os.getpid(), signal.SIGTERM)\n"
    (made.folder / "data.py").write_text(stopped)
    assert mlops("retrain")[0] == 143
    assert [event.event for event in RetrainingLog(model).read()] == ["started", "failed"]


def ready(environment: Environment, champion: Bundle, challenger: Bundle, **rules: Any) -> tuple[RegisteredModel, str]:
    """A run has brought `challenger`, which passed the gate against `champion`."""
    told = live_log.contract_yaml(retraining=rules)
    champion = Bundle(champion.files | {"contract.json": Contract.model_validate(told).json_bytes()})
    model = serve(environment, champion)
    digest = synthetic.publish(environment, challenger)
    attest(model, "gate", digest, verdict="passed", details={"champion": champion.digest})
    log = RetrainingLog(model)
    log.end(log.begin(CONTRACT.retraining, "retrain", "30 days", FIRST), "passed", "30 days", digest)
    return model, digest


@pytest.fixture(scope="module")
def challenger() -> Bundle:
    return synthetic.build(CONTRACT, live_log.rows(), learning_rate=0.2)


def released(model: RegisteredModel) -> list[tuple[str, bool]]:
    steps, _ = loop(model)
    steps.retrain()
    Approver(model).release()
    return [(each.mode, each.paused) for each in model.releases.read()]


@pytest.mark.parametrize(("release", "records"), [
    ("rollout", [("full", False), ("shadow", False)]), ("challenger", [("full", False), ("shadow", True)]), ("none", [("full", False)]),
])  # fmt: skip
def test_the_contract_says_how_far_a_new_model_goes(
    environment: Environment, champion: Bundle, challenger: Bundle, release: str, records: list[tuple[str, bool]]
) -> None:
    model, _ = ready(environment, champion, challenger, release=release)
    assert released(model) == records
    assert released(model) == records, "once"


def test_one_that_was_aborted_does_not_come_back(
    environment: Environment, champion: Bundle, challenger: Bundle
) -> None:
    model, _ = ready(environment, champion, challenger)
    released(model)
    promotion.rollback(model, "callers complain")
    assert released(model)[-1] == ("full", False)


def test_a_rollout_in_progress_is_not_disturbed_and_then_it_follows(
    environment: Environment, champion: Bundle, challenger: Bundle
) -> None:
    model, digest = ready(environment, champion, challenger)
    other = synthetic.publish(environment, synthetic.build(CONTRACT, live_log.rows(), max_iter=5))
    promotion.release(model, other, "by hand", mode="shadow")
    assert len(released(model)) == 2
    promotion.rollback(model, "no")
    assert released(model)[-1] == ("shadow", False)
    assert model.releases.read()[-1].challenger == digest


def test_whoever_writes_while_it_is_verified_is_not_overruled(
    environment: Environment, champion: Bundle, challenger: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two controllers, or a person who aborts what the other one began."""
    model, digest = ready(environment, champion, challenger)
    verify = promotion.run_in_sandbox

    def slowly(bundle: Bundle, digest: str) -> Checked:
        monkeypatch.setattr(promotion, "run_in_sandbox", verify)
        promotion.release(environment.model(MODEL), digest, "the other one", mode="shadow")
        promotion.rollback(environment.model(MODEL), "no")
        return verify(bundle, digest)

    monkeypatch.setattr(promotion, "run_in_sandbox", slowly)
    assert [mode for mode, _ in released(model)] == ["full", "shadow", "full"]
    assert model.releases.read()[1].challenger == digest


def test_it_is_not_released_beside_another_champion_than_the_gate_saw(
    environment: Environment, champion: Bundle, challenger: Bundle
) -> None:
    model, _ = ready(environment, champion, challenger)
    promotion.release(
        model, synthetic.publish(environment, synthetic.build(CONTRACT, live_log.rows(), max_iter=5)), "by hand"
    )
    assert [mode for mode, _ in released(model)] == ["full", "full"]


def test_what_nobody_signed_is_not_released(environment: Environment, champion: Bundle, challenger: Bundle) -> None:
    """Whoever can write the bucket can write an event, and no more."""
    model, digest = ready(environment, champion, challenger)
    for key in model.store.keys(f"{model.folder}/attestations/{digest}"):
        model.store.delete(key)
    with pytest.raises(VerificationError):
        released(model)
    assert len(model.releases.read()) == 1
