"""Where a training that is due runs: a process beside the controller, or a workflow of GitHub."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.delivery import training as delivered
from cli.delivery import verbs
from mlops.contract import Retraining
from mlops.environment import ROOT, Environment
from mlops.errors import UserError
from mlops.processes import exists
from mlops.retraining import RetrainingLog
from monitoring import trainer as trainers
from monitoring.trainer import GitHub, Local, trainer
from tests.delivery.forge import Forge
from tests.delivery.runner import act
from tests.synthetic import MODEL

# What no shell may see.
WHY = 'scores lie -0.080 from outcomes; $(touch found) `id` "it\'s" ${{ github.token }} && exit 1'
TOLD = "import json, os, sys\nprint('told', json.dumps([sys.argv[1:], {n: os.environ.get(n) for n in %r}]))\n"


@pytest.fixture
def forge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Forge]:
    """With the workflow *train*, whose command says what it was told."""
    with Forge(tmp_path / "forge") as forge:
        work = forge.clone(tmp_path / "work")
        names = [".github/workflows/train.yml", ".github/actions/setup/action.yml"]
        files = {name: (ROOT / name).read_text() for name in names}
        files["cli/__main__.py"] = TOLD % ["ENVIRONMENT", "MODEL", "ACTION", "WHY"]
        for name, text in files.items():
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            (work / name).write_text(text)
        for words in ("add -A", "commit -q -m train"):
            subprocess.run(["git", "-C", work, *words.split()], check=True)
        forge.push(work)
        forge.variables["MLOPS_ENVIRONMENTS"] = '["dev", "local"]'
        forge.path = [ROOT / "tests" / "delivery" / "bin"]
        monkeypatch.setenv("GITHUB_API_URL", forge.url)
        monkeypatch.setenv("MLOPS_GITHUB_TOKEN", "user:ann")
        yield forge


@pytest.mark.skipif(act() is None, reason="act is not installed: go install github.com/nektos/act@v0.2.89")
def test_the_workflow_trains_what_the_platform_asked_for(forge: Forge, environment: Environment) -> None:
    GitHub(environment.model(MODEL), "acme/ml").start("recalibrate", WHY)
    forge.wait()
    [run] = forge.runs
    assert (run.workflow, run.event, run.conclusion) == ("train.yml", "repository_dispatch", "success"), run.log
    line = next(line for line in run.log.splitlines() if "told [" in line)
    words, told = json.loads(line[line.index("told ") + 5 :])
    assert words == ["ci", "train"]
    assert told == {"ENVIRONMENT": "local", "MODEL": MODEL, "ACTION": "recalibrate", "WHY": WHY}
    assert forge.problems == []


def test_it_is_asked_once_and_again_only_when_nothing_came_of_it(
    forge: Forge, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run waits for a machine: until it has claimed its place, the controller finds the training due every ten seconds."""
    asked = GitHub(environment.model(MODEL), "acme/ml")
    for _ in range(3):
        asked.start("retrain", "30 days")
    assert [(each.method, each.path, each.status) for each in forge.requests] == [
        ("POST", "/repos/acme/ml/dispatches", 204)
    ]
    assert forge.requests[0].body == {
        "event_type": "drift",
        "client_payload": {"environment": "local", "model": MODEL, "action": "retrain", "why": "30 days"},
    }
    later = time.monotonic() + trainers._PATIENCE_SECONDS
    monkeypatch.setattr(time, "monotonic", lambda: later)
    asked.start("retrain", "30 days")
    assert len(forge.requests) == 2


@pytest.mark.parametrize(("repository", "token", "hint"), [
    ("acme/other", "user:ann", "GitHub answered 404"), ("acme/ml", "wrong", "GitHub answered 401"),
])  # fmt: skip
def test_an_answer_that_is_no_success_says_which(
    forge: Forge, environment: Environment, monkeypatch: pytest.MonkeyPatch, repository: str, token: str, hint: str
) -> None:
    monkeypatch.setenv("MLOPS_GITHUB_TOKEN", token)
    asked = GitHub(environment.model(MODEL), repository)
    for _ in range(2):  # the next look asks again, and the step counts as failing
        with pytest.raises(UserError, match=hint):
            asked.start("retrain", "30 days")
    assert len(forge.requests) == 2


def test_silence_and_a_missing_token_are_errors_too(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_API_URL", "http://127.0.0.1:1")
    for token, why in (("some\n", "GitHub does not answer"), (" ", "MLOPS_GITHUB_TOKEN is '': set it to a token")):
        monkeypatch.setenv("MLOPS_GITHUB_TOKEN", token)
        with pytest.raises(UserError, match=why):
            GitHub(environment.model(MODEL), "acme/ml").start("retrain", "30 days")


@pytest.mark.parametrize(("action", "words"), [
    ("", ["train"]), ("recalibrate", ["retrain", "--action", "recalibrate", "--why", WHY]),
])  # fmt: skip
def test_the_step_of_the_workflow_runs_the_command_there(
    monkeypatch: pytest.MonkeyPatch, action: str, words: list[str]
) -> None:
    ran: list[list[str]] = []

    def mlops(_: Path, *words: str) -> tuple[dict[str, object], int]:
        ran.append(list(words))
        return {"digest": "d" * 64, "gate": "refused", "reasons": ["loss: rises"], "metrics": {"loss": 1.0}}, 3

    monkeypatch.setattr(delivered, "_mlops", mlops)
    told = {"ENVIRONMENT": "prod", "MODEL": "churn", "ACTION": action, "WHY": WHY if action else ""}
    done = CliRunner().invoke(verbs.app, ["train"], env=told)
    assert ran == [["--env", "prod", "--model", "churn", *words]]
    assert "refused" in str(done.exception)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_training_beside_the_controller_that_is_killed_is_given_up(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parent, the controller, must notice: a child that nobody waited for looks alive."""
    for name in ("home", "bucket", "keyring", "endpoint", "tracking"):
        monkeypatch.setenv(f"MLOPS_{name.upper()}", str(getattr(environment, name)))
    model, beside = environment.model(MODEL), Local(environment.model(MODEL))
    log = RetrainingLog(model)
    beside.start("retrain", "30 days")
    child = beside._child
    assert child
    beside.start("retrain", "30 days")
    assert beside._child is child, "one is enough"
    with monkeypatch.context() as as_child:
        as_child.setattr(os, "getpid", lambda: child.pid)
        log.begin(Retraining(), "retrain", "30 days", date(2024, 6, 1))
    log.give_up()
    assert len(log.read()) == 1
    child.send_signal(signal.SIGKILL)
    until(lambda: not exists(child.pid))
    log.give_up()
    assert [event.event for event in log.read()] == ["started", "failed"]


@pytest.mark.parametrize(("setting", "kind"), [("", type(None)), ("local", Local), ("github:acme/ml", GitHub)])
def test_the_setting_says_where(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, setting: str, kind: type
) -> None:
    monkeypatch.setenv("MLOPS_TRAINER", setting)
    assert type(trainer(environment.model(MODEL))) is kind


@pytest.mark.parametrize("setting", ["github", "github:", "argo"])
def test_any_other_setting_is_refused(environment: Environment, monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    monkeypatch.setenv("MLOPS_TRAINER", setting)
    with pytest.raises(UserError, match="write local, github:OWNER/NAME, or nothing"):
        trainer(environment.model(MODEL))
