from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import optuna
import polars as pl
import pytest
import yaml

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


def test_blocks_lie_one_after_the_other(made: ModelDefinition) -> None:
    blocks = forward_blocks(made.load(), made.contract)
    assert sum(block.height for block in blocks) == 800
    for earlier, later in pairwise(blocks):
        assert data.days(earlier, made.contract).max() < data.days(later, made.contract).min()
    assert {block.height for block in blocks} == {200}


def test_what_it_finds_is_what_train_uses(environment: Environment, made: ModelDefinition) -> None:
    found = search(environment, made, 2)
    assert (found["trials"], found["resumed"]) == (2, 0)
    file = made.folder / "parameters.yaml"
    assert found["file"] == str(file)
    assert yaml.safe_load(file.read_text()) == found["parameters"]
    again = load_definition(synthetic.MODEL, made.folder)
    assert again.parameters == found["parameters"]
    assert set(again.parameters) == set(estimator.DEFAULTS)
    model = again.pipeline(again.contract, again.parameters, 0).steps[-1][1]
    assert {name: getattr(model, name) for name in found["parameters"]} == found["parameters"]


def test_the_held_out_rows_play_no_part(environment: Environment, tmp_path: Path) -> None:
    rows = synthetic.frame(40, 20)
    found = []
    for turned in (False, True):
        late = pl.col("at") >= rows["at"].min() + pl.duration(days=25)
        table = rows.with_columns(y=pl.when(late & turned).then(1 - pl.col("y")).otherwise(pl.col("y")))
        here = environment.model_copy(update={"home": tmp_path / str(turned)})
        found.append(search(here, synthetic.write_model(tmp_path / str(turned), table), 1))
    assert found[0]["loss"] == found[1]["loss"]
    assert found[0]["parameters"] == found[1]["parameters"]


def test_killed_in_between_it_goes_on_where_it_was(
    environment: Environment, made: ModelDefinition, tmp_path: Path
) -> None:
    told = {
        f"MLOPS_{k.upper()}": str(getattr(environment, k))
        for k in ("home", "bucket", "keyring", "endpoint", "tracking")
    }
    command = [sys.executable, "-m", "cli", "tune", "--trials", "500"]
    storage = environment.home / "tune" / f"{synthetic.MODEL}.db"
    with (tmp_path / "log").open("w") as log:
        child = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | told | {"MLOPS_MODELS": str(tmp_path)}, stdout=log, stderr=log
        )
        deadline = time.monotonic() + 120
        while finished(storage) < 2:
            assert child.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        child.send_signal(signal.SIGKILL)
        child.wait()
    before = finished(storage)
    assert before < 500
    assert not (made.folder / "parameters.yaml").exists()
    found = search(environment, made, before + 2)
    assert (found["resumed"], found["trials"]) == (before, before + 2)
    assert (made.folder / "parameters.yaml").exists()
    assert search(environment, made, before + 2) | {"resumed": before} == found, "nothing is left to do"


def finished(storage: Path) -> int:
    if not storage.exists():
        return 0
    try:
        studies = optuna.study.get_all_study_summaries(f"sqlite:///{storage}")
        loaded = [optuna.load_study(study_name=study.study_name, storage=f"sqlite:///{storage}") for study in studies]
    except Exception:
        return 0  # the tables are being made
    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    return sum(len(study.get_trials(deepcopy=False, states=states)) for study in loaded)


def test_other_rows_are_another_search(environment: Environment, made: ModelDefinition, tmp_path: Path) -> None:
    search(environment, made, 1)
    other = synthetic.write_model(tmp_path / "other", synthetic.frame(40, 20, seed=3))
    assert search(environment, other, 1)["resumed"] == 0
