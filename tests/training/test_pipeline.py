from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import polars as pl
import pytest
import yaml

from mlops import attestations, promotion
from mlops import bundle as bundles
from mlops.attestations import require_gate
from mlops.contract import Contract, Window
from mlops.environment import ROOT, Environment
from mlops.errors import UserError, VerificationError
from mlops.sandbox import TOLERANCE
from tests import synthetic
from tests.proofs import parity
from tests.proofs.gate import synthetic_problem
from training import pipeline
from training.definition import ModelDefinition, load_definition
from training.pipeline import Trained

FAST = {"max_iter": 30}
PLOTS = {
    "binary": {
        "confusion_matrix",
        "roc",
        "precision_recall",
        "calibration",
        "loss_by_day",
        "permutation_importance",
        "score_distribution",
    },
    "regression": {
        "calibration",
        "loss_by_day",
        "permutation_importance",
        "score_distribution",
        "predicted_against_actual",
    },
}


def model(
    models: Path, rows: pl.DataFrame | None = None, name: str = synthetic.MODEL, task: str = "binary", **parameters: Any
) -> ModelDefinition:
    contract = synthetic.contract_yaml(task, model=name)
    made = synthetic.write_model(models, synthetic.frame() if rows is None else rows, contract)
    (made.folder / "parameters.yaml").write_text(yaml.safe_dump(FAST | parameters))
    return load_definition(name, made.folder)


def train(environment: Environment, definition: ModelDefinition, **options: Any) -> Trained:
    return pipeline.train(environment, definition, say=lambda _: None, **options)


def cli(environment: Environment, models: Path, *words: str) -> subprocess.CompletedProcess[str]:
    addresses = {
        f"MLOPS_{k.upper()}": str(getattr(environment, k))
        for k in ("home", "bucket", "keyring", "endpoint", "tracking")
    }
    return subprocess.run(
        [sys.executable, "-m", "cli", *words],
        cwd=ROOT, env=os.environ | addresses | {"MLOPS_MODELS": str(models)}, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_a_training_leaves_a_run_that_explains_it(tracked: Environment, tmp_path: Path, task: str) -> None:
    trained = train(tracked, model(tmp_path, name=f"explained-{task}", task=task))
    assert trained.verdict.decision == "passed", trained.verdict.reasons
    name = f"explained-{task}"
    client = mlflow.MlflowClient(tracked.tracking)
    version = client.get_model_version(name, str(trained.version))
    assert (version.tags["digest"], version.tags["gate"]) == (trained.digest, "passed")
    run = client.get_run(str(version.run_id))
    assert run.info.status == "FINISHED"
    assert run.data.params["max_iter"] == "30"
    assert run.data.params["train"].startswith("2024-01-01..")
    assert run.data.metrics["loss"] == pytest.approx(trained.metrics["loss"])
    assert set(run.data.tags) >= {"fingerprint", "commit", "digest", "gate", "environment"}
    assert run.data.params["seed"] == "0"
    assert run.info.run_name == f"{trained.digest[:12]} passed"
    assert run.inputs is not None
    [data] = run.inputs.dataset_inputs
    assert data.dataset.digest == trained.bundle.json("provenance.json")["data"]["fingerprint"][:36]
    origin = trained.bundle.json("provenance.json")
    assert run.data.tags["fingerprint"] == origin["data"]["fingerprint"]
    assert set(origin) >= {"lock", "seed", "libraries", "architecture"}
    kept = Path(client.download_artifacts(run.info.run_id, "", str(tmp_path)))
    assert {path.stem for path in (kept / "plots").glob("*.png")} == PLOTS[task]
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in (kept / "plots").glob("*.png"))
    assert {path.name for path in (kept / "bundle").iterdir()} == {*bundles.FILES, "manifest.json"}
    assert json.loads((kept / "report.json").read_text())["decision"] == "passed"
    page = trained.report.read_text()
    assert page == (kept / "report.html").read_text()
    assert "passed" in page
    assert 'src="http' not in page
    assert bundles.read(tracked.model(name), trained.digest).digest == trained.digest
    signed, invalid = attestations.read(tracked.model(name), trained.digest)
    assert ({each.kind for each in signed}, invalid) == ({"built", "gate"}, [])
    assert require_gate(tracked.model(name), trained.digest).details["checks"]


def test_the_same_inputs_give_the_same_digest_registered_once_and_another_seed_another(
    tracked: Environment, tmp_path: Path
) -> None:
    rows = synthetic.frame()
    digests = [
        train(tracked, model(tmp_path / str(place), order, "again")).digest
        for place, order in enumerate((rows, rows.reverse(), rows.sample(fraction=1.0, shuffle=True, seed=1)))
    ]
    assert len(set(digests)) == 1
    definition = model(tmp_path / "0", rows, "again")
    other = train(tracked, definition, seed=1)
    assert other.digest != digests[0]
    assert other.bundle.json("provenance.json")["seed"] == 1
    versions = mlflow.MlflowClient(tracked.tracking).search_model_versions("name = 'again'")
    assert sorted(v.tags["digest"] for v in versions) == sorted({digests[0], other.digest})


def test_a_refused_model_is_kept_with_its_reasons_and_cannot_be_released(tracked: Environment, tmp_path: Path) -> None:
    rows = synthetic.frame().with_columns(pl.col("y").shuffle(seed=1))
    definition = model(tmp_path / "models", rows, "shuffled")
    done = cli(tracked, tmp_path / "models", "train", "--json")
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    found = json.loads(done.stdout.splitlines()[0])
    assert found["gate"] == "refused"
    assert any(reason.startswith("floor:") for reason in found["reasons"])
    assert all(reason in Path(found["report"]).read_text().replace("&#39;", "'") for reason in found["reasons"])
    with pytest.raises(VerificationError, match="refused by the gate"):
        promotion.release(tracked.model("shuffled"), found["digest"], "all the same")
    assert bundles.read(tracked.model("shuffled"), found["digest"]).contract == definition.contract
    client = mlflow.MlflowClient(tracked.tracking)
    assert client.search_registered_models("name = 'shuffled'") == []
    experiment = client.get_experiment_by_name("shuffled")
    assert experiment is not None
    run = client.search_runs([experiment.experiment_id])[0]
    assert (run.data.tags["gate"], run.info.status) == ("refused", "FAILED")
    assert run.info.run_name == f"{found['digest'][:12]} refused"


def test_a_linear_models_run_has_its_own_parameters_and_an_experiment_deleted_by_hand_comes_back(
    tracked: Environment, tmp_path: Path
) -> None:
    folder = model(tmp_path, name="restored").folder
    (folder / "parameters.yaml").write_text("estimator: linear\n")
    client = mlflow.MlflowClient(tracked.tracking)
    client.delete_experiment(client.create_experiment("restored"))
    trained = train(tracked, load_definition("restored", folder))
    experiment = client.get_experiment_by_name("restored")
    assert experiment is not None
    assert experiment.lifecycle_stage == "active"
    [run] = client.search_runs([experiment.experiment_id])
    assert run.data.params["estimator"] == "LogisticRegression"
    assert not set(run.data.params) & {"max_leaf_nodes", "learning_rate"}
    assert run.data.tags["digest"] == trained.digest


@pytest.mark.parametrize("name", ["MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "GIT_DIR"])
def test_what_the_environment_says_of_other_programs_changes_nothing(
    tracked: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = model(tmp_path / "models", name="untouched").folder.parent
    subprocess.run(["git", "init", "-q", str(tmp_path / "other")], check=True)
    monkeypatch.setenv(
        name, str(tmp_path / "other" / ".git") if name == "GIT_DIR" else "0123456789abcdef0123456789abcdef"
    )
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    done = cli(tracked, folder, "--json", "train")
    assert done.returncode == 0, done.stderr
    digest = json.loads(done.stdout.splitlines()[-1])["digest"]
    built = next(each for each in attestations.read(tracked.model("untouched"), digest)[0] if each.kind == "built")
    head = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        env={**os.environ, "GIT_DIR": str(ROOT / ".git")},
    )
    assert built.details["commit"].startswith(head.stdout.strip())


def test_a_challenger_is_compared_with_the_champion_on_rows_that_neither_has_seen(
    tracked: Environment, tmp_path: Path
) -> None:
    definition = model(tmp_path, name="contest")
    champion = train(tracked, definition)
    promotion.release(tracked.model("contest"), champion.digest, "first")
    with pytest.raises(UserError, match="rows that neither model has seen") as caught:
        train(tracked, definition, train_window=Window.parse("0..0.3"), holdout_window=Window.parse("0.3..0.7"))
    assert caught.value.key == "holdout"
    again = train(tracked, definition, seed=1)
    named = {check.name for check in again.verdict.checks}
    assert again.verdict.decision == "passed", again.verdict.reasons
    assert {"holdout", "loss", "too_good", "calibration", "slice:color=red"} <= named
    few = train(tracked, definition, train_window=Window.parse("0..0.03"))
    assert few.verdict.decision == "refused"
    assert any(reason.startswith("loss: ") for reason in few.verdict.reasons)


def test_windows_that_overlap_are_refused(tracked: Environment, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="overlaps the training window"):
        train(
            tracked,
            model(tmp_path, name="overlapping"),
            train_window=Window.parse("0..0.7"),
            holdout_window=Window.parse("0.69..1.0"),
        )


def test_a_strong_column_needs_a_reason_in_the_contract_and_no_loss_is_accepted(
    tracked: Environment, tmp_path: Path
) -> None:
    rows = synthetic.frame().with_columns(size=pl.col("size") + 1.5 * pl.col("y"))
    definition = model(tmp_path, rows, "telling")
    refused = train(tracked, definition)
    assert [reason.partition(":")[0] for reason in refused.verdict.reasons] == ["leakage"]
    assert "size alone has AUC" in refused.verdict.reasons[0]
    assert refused.version is None
    explained = synthetic.contract_yaml(model="telling")
    explained["features"]["size"]["strong"] = "the size is on the order"
    accepted = train(tracked, replace(definition, contract=Contract.model_validate(explained)))
    assert accepted.verdict.decision == "passed"
    assert "the size is on the order" in accepted.report.read_text()
    assert require_gate(tracked.model("telling"), accepted.digest).verdict == "passed"
    with pytest.raises(UserError, match="only too_good"):
        train(tracked, definition, accept={"loss": "it will be fine"})


def test_without_a_tracking_server_the_error_has_a_hint(environment: Environment, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make up"):
        train(environment, model(tmp_path))


def test_the_app_answers_as_scikit_learn_does(tmp_path: Path) -> None:
    problem = synthetic_problem(60, 60)
    rows = parity.spoilt(problem.holdout, problem)
    found = parity.compare(tmp_path, problem, rows)
    assert found["rows"] == rows.height
    assert found["unknown_or_missing"] > 100
    assert found["difference"] <= TOLERANCE
