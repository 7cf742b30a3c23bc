"""What the approver does with the verdicts that it finds in the bucket."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from mlops import releases, rollout
from mlops.attestations import attest
from mlops.bundle import Bundle
from mlops.environment import ROOT, Environment
from mlops.registered_model import RegisteredModel
from mlops.releases import Release
from mlops.verdict import Verdict
from monitoring import approver
from monitoring.approver import Approver
from monitoring.controller import Controller
from tests.rollout_log import Log, Rows
from tests.synthetic import MODEL, publish

ABORT, ADVANCE, UNDECIDED = (Verdict(decision, ["so"], [], []) for decision in ("abort", "advance", "inconclusive"))


@pytest.fixture
def model(environment: Environment, first_bundle: Bundle, second_bundle: Bundle) -> RegisteredModel:
    """With a shadow release in progress."""
    model = environment.model(MODEL)
    digests = [publish(environment, bundle) for bundle in (first_bundle, second_bundle)]
    for digest in digests:
        attest(model, "approved", digest, verdict="passed", environment=environment.name)
    model.releases.append(digests[0], "first")
    rollout.begin(model, *digests, "try", mode="shadow")
    return model


def current(model: RegisteredModel) -> Release:
    found = model.releases.current()
    assert found
    return found


def age(model: RegisteredModel, decision: str, by: timedelta) -> None:
    """As if the judge had said so before."""
    [key] = [key for key in model.store.keys(f"{model.folder}/verdicts") if key.endswith(f"-{decision}.json")]
    said = json.loads(model.store.get(key) or b"")
    model.store.put(key, json.dumps(said | {"at": (releases.now() - by).isoformat()}).encode())


def test_it_writes_what_follows_from_the_newest_verdict_once(model: RegisteredModel) -> None:
    acting = Approver(model)
    acting.decide()
    assert current(model).mode == "shadow"
    rollout.save_verdict(model, current(model), ADVANCE)
    age(model, "advance", timedelta(seconds=30))
    rollout.save_verdict(model, current(model), UNDECIDED)
    acting.decide()
    assert current(model).mode == "shadow", "it is not so clear any more"
    rollout.save_verdict(model, current(model), ADVANCE)
    for _ in range(3):
        acting.decide()
    assert (current(model).weight, len(model.releases.read())) == (0.01, 3)
    rollout.save_verdict(model, current(model), ABORT)
    for _ in range(3):
        acting.decide()
    assert (current(model).mode, current(model).why, len(model.releases.read())) == ("full", "aborted: so", 4)


def test_an_old_verdict_advances_nothing_but_aborts(model: RegisteredModel) -> None:
    rollout.save_verdict(model, current(model), ADVANCE)
    age(model, "advance", timedelta(minutes=10))
    Approver(model).decide()
    assert current(model).mode == "shadow"
    rollout.save_verdict(model, current(model), ABORT)
    age(model, "abort", timedelta(minutes=5))
    Approver(model).decide()
    assert current(model).mode == "full"


DAMAGED: dict[str, bytes] = {
    "nothing": b"",
    "no verdict": b"{}",
    "no moment": b'{"decision": "advance", "reasons": [], "checks": [], "untestable": []}',
    "no zone": b'{"at": "2199-01-01T00:00:00", "decision": "advance", "reasons": [], "checks": [], "untestable": []}',
    "huge": b" " * 2**21,
    "deep": b"[" * 100_000,
    "of another type": b'{"at": "2199-01-01T00:00:00Z", "decision": ["advance"], "reasons": 1, "checks": 2}',
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_verdict_is_none(model: RegisteredModel, content: bytes) -> None:
    release = current(model)
    model.store.put(f"{model.folder}/verdicts/{release.rollout}/{release.revision:08d}-advance.json", content)
    Approver(model).decide()
    assert current(model) == release
    assert rollout.read_verdicts(model, release.rollout) == []
    rollout.save_verdict(model, release, ABORT)
    Approver(model).decide()
    assert current(model).mode == "full"


def test_without_a_judge_nobody_stays_exposed(model: RegisteredModel, monkeypatch: pytest.MonkeyPatch) -> None:
    acting = Approver(model)
    acting.decide()
    rollout.save_verdict(model, current(model), UNDECIDED)
    monkeypatch.setattr(approver, "_SILENT_SECONDS", -1.0)
    acting.decide()
    assert current(model).why.startswith("aborted: the judge has not looked for")


def test_a_judge_that_cannot_look_ends_the_rollout(
    environment: Environment, model: RegisteredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise OverflowError("date value out of range")

    controller, acting = Controller(environment, MODEL), Approver(model)
    monkeypatch.setattr("monitoring.controller.judge_now", broken)
    for _ in range(4):
        with pytest.raises(OverflowError):
            controller.judge()
        acting.decide()
    assert current(model).mode == "shadow", "it may be over at the next look"
    with pytest.raises(OverflowError):
        controller.judge()
    acting.decide()
    assert current(model).why == "aborted: the judge could not look 5 times in a row: date value out of range"


def test_a_bucket_that_is_out_of_reach_ends_no_rollout(
    environment: Environment, model: RegisteredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from obstore.exceptions import GenericError

    def unreachable(*_: Any) -> None:
        raise GenericError("timeout")

    controller = Controller(environment, MODEL)
    monkeypatch.setattr("monitoring.controller.judge_now", unreachable)
    for _ in range(20):
        with pytest.raises(GenericError):
            controller.judge()
    assert rollout.newest_verdict(model, current(model)) is None


def test_the_judge_needs_no_key(environment: Environment, model: RegisteredModel) -> None:
    private = {file: file.read_bytes() for file in environment.keyring.parent.glob("*.pem")}
    for file in private:
        file.unlink()
    Log(environment.store).write(current(model), Rows(days=9))
    Controller(environment, MODEL).judge()
    said = rollout.newest_verdict(model, current(model))
    assert said
    assert said[1].decision == "advance"
    for file, content in private.items():
        file.write_bytes(content)
    Approver(model).decide()
    assert current(model).weight == 0.01


def test_it_imports_nothing_that_decodes_what_callers_sent() -> None:
    """polars and Arrow read files of the log; the bytes of the log never reach this process."""
    code = "import sys, monitoring.approver; print([name for name in ('polars', 'pyarrow') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_thread_that_dies_ends_its_process(tmp_path: Path) -> None:
    code = (
        "import threading, time; from mlops.processes import end_with_its_threads as end; end()\n"
        "class Panic(BaseException): pass\n"
        "def dies(): raise Panic('a library panics')\n"
        "threading.Thread(target=dies, name='judge').start(); time.sleep(60)"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert (found.returncode, "thread judge died" in found.stderr, "a library panics" in found.stderr) == (
        70,
        True,
        True,
    )
