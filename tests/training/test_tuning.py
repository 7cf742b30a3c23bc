from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import IO

import optuna
import polars as pl
import pytest
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from mlops.environment import ROOT, Environment
from tests import synthetic
from training import data, estimator
from training.definition import ModelDefinition, load_definition
from training.tuning import forward_blocks, tune


@pytest.fixture
def made(tmp_path: Path) -> ModelDefinition:
    return synthetic.write_model(tmp_path, synthetic.frame(40, 20))


def search(environment: Environment, made: ModelDefinition, trials: int) -> dict:
    return tune(environment, made, trials, 0, lambda _: None)


def start(
    environment: Environment, made: ModelDefinition, trials: int, out: IO[str], log: IO[str]
) -> subprocess.Popen[bytes]:
    """The same in a process of its own."""
    fields = ("home", "bucket", "keyring", "endpoint", "tracking")
    addresses = {f"MLOPS_{field.upper()}": str(getattr(environment, field)) for field in fields}
    settings = os.environ | addresses | {"MLOPS_MODELS": str(made.folder.parent)}
    command = [sys.executable, "-m", "cli", "tune", "--trials", str(trials), "--json"]
    return subprocess.Popen(command, cwd=ROOT, env=settings, stdout=out, stderr=log)


def test_blocks_lie_one_after_the_other(made: ModelDefinition) -> None:
    blocks = forward_blocks(made.load(), made.contract)
    assert sum(block.height for block in blocks) == 800
    for earlier, later in pairwise(blocks):
        assert data.days(earlier, made.contract).max() < data.days(later, made.contract).min()
    assert {block.height for block in blocks} == {200}


def test_a_training_uses_the_parameters_that_were_found(environment: Environment, made: ModelDefinition) -> None:
    found = search(environment, made, 2)
    assert (found["trials"], found["resumed"]) == (2, 0)
    file = made.folder / "parameters.yaml"
    assert found["file"] == str(file)
    assert yaml.safe_load(file.read_text()) == found["parameters"]
    again = load_definition(synthetic.MODEL, made.folder)
    assert again.parameters == found["parameters"]
    assert set(again.parameters) == set(estimator.DEFAULTS["boosting"])
    model = again.pipeline(again.contract, again.parameters, 0).steps[-1][1]
    assert {name: getattr(model, name) for name in found["parameters"]} == found["parameters"]


def test_a_linear_model_stays_one(environment: Environment, made: ModelDefinition) -> None:
    linear = replace(made, parameters={"estimator": "linear"})
    found = search(environment, linear, 2)
    assert set(found["parameters"]) == {"estimator", "regularization"}
    assert found["parameters"]["estimator"] == "linear"
    model = made.pipeline(made.contract, found["parameters"], 0).steps[-1][1]
    assert type(model).__name__ == "LogisticRegression"
    assert pytest.approx(1 / found["parameters"]["regularization"]) == model.C


def test_the_holdout_rows_play_no_part(environment: Environment, tmp_path: Path) -> None:
    rows = synthetic.frame(40, 20)
    found = []
    for turned in (False, True):
        late = pl.col("at") >= rows["at"].min() + pl.duration(days=25)
        table = rows.with_columns(y=pl.when(late & turned).then(1 - pl.col("y")).otherwise(pl.col("y")))
        here = environment.model_copy(update={"home": tmp_path / str(turned)})
        found.append(search(here, synthetic.write_model(tmp_path / str(turned), table), 1))
    assert found[0]["loss"] == found[1]["loss"]
    assert found[0]["parameters"] == found[1]["parameters"]


def test_a_search_that_was_killed_continues(environment: Environment, made: ModelDefinition, tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        child = start(environment, made, 500, log, log)
        deadline = time.monotonic() + 120
        while finished(environment) < 2:
            assert child.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        child.send_signal(signal.SIGKILL)
        child.wait()
    before = finished(environment)
    assert before < 500
    assert not (made.folder / "parameters.yaml").exists()
    found = search(environment, made, before + 2)
    assert (found["resumed"], found["trials"]) == (before, before + 2)
    assert (made.folder / "parameters.yaml").exists()
    assert search(environment, made, before + 2) | {"resumed": before} == found, "nothing is left to do"


def finished(environment: Environment) -> int:
    """Trials in the journal, which is read while another process writes it."""
    journal = environment.home / "tune" / f"{synthetic.MODEL}.log"
    if not journal.exists():
        return 0
    storage = JournalStorage(JournalFileBackend(str(journal)))
    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    studies = storage.get_all_studies()
    return sum(len(storage.get_all_trials(each._study_id, deepcopy=False, states=states)) for each in studies)


def test_two_searches_at_once_both_succeed(environment: Environment, made: ModelDefinition, tmp_path: Path) -> None:
    trials, names = 3, ("one", "other")
    with (tmp_path / "log").open("w") as log:
        for name in names:
            (tmp_path / name).touch()
        outs = [(tmp_path / name).open("w") for name in names]
        children = [start(environment, made, trials, out, log) for out in outs]
        codes = [child.wait(240) for child in children]
    for out in outs:
        out.close()
    assert codes == [0, 0], (tmp_path / "log").read_text()
    found = [json.loads((tmp_path / name).read_text()) for name in names]
    assert trials <= finished(environment) <= 2 * trials
    assert max(each["trials"] for each in found) == finished(environment), "in one search"
    assert yaml.safe_load((made.folder / "parameters.yaml").read_text()) in [each["parameters"] for each in found]
    assert search(environment, made, trials)["resumed"] == finished(environment)


def test_other_rows_are_another_search(environment: Environment, made: ModelDefinition, tmp_path: Path) -> None:
    search(environment, made, 1)
    other = synthetic.write_model(tmp_path / "other", synthetic.frame(40, 20, seed=3))
    assert search(environment, other, 1)["resumed"] == 0
