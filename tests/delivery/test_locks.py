"""A run that is killed in the middle of `up` leaves the state of its environment locked; whoever holds a lock and may be
alive keeps it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.delivery.forge import Forge
from tests.delivery.fork import STAGES, Fork
from tests.delivery.runner import Run, act

pytestmark = pytest.mark.skipif(act() is None, reason="act is not installed: go install github.com/nektos/act")


@pytest.fixture
def fork(tmp_path: Path) -> Iterator[Fork]:
    with Forge(tmp_path / "forge") as forge:
        fork = Fork(tmp_path / "fork", forge).on_clusters()
        forge.variables["MLOPS_ENVIRONMENTS"] = json.dumps(STAGES)
        fork.commit("made from the template")
        yield fork
        assert forge.problems == []


def killed_at(fork: Fork, step: int) -> Run:
    """The machine of the run is switched off while Pulumi is at a step."""
    fork.forge.env["PULUMI_HANGS_AT"] = str(step)
    edit(fork, f"until step {step}")
    (run,) = fork.forge.push(fork.work, wait=False)
    run.until(f"/dev: step {step}", 60)
    run.kill()
    del fork.forge.env["PULUMI_HANGS_AT"]
    return run


def locks(fork: Fork, stack: str = "dev") -> list[Path]:
    return list((fork.folder / "pulumi" / ".pulumi" / "locks" / "organization" / "mlops" / stack).glob("*.json"))


def edit(fork: Fork, message: str) -> None:
    with (fork.work / "app" / "__init__.py").open("a") as code:
        code.write(f"# {message}\n")
    fork.commit(message)


def next_one(fork: Fork, message: str) -> Run:
    edit(fork, message)
    (run,) = fork.forge.push(fork.work)
    return run


def test_the_lock_of_a_run_that_is_over_goes_that_of_anybody_else_stays(fork: Fork) -> None:
    killed = killed_at(fork, 7)
    (lock,) = locks(fork)
    # As long as GitHub says that the run goes on: its queue would not let another one begin.
    killed.status = "in_progress"
    environment = {
        "PYTHONPATH": str(fork.work), "ENVIRONMENT": "dev", "GITHUB_ACTIONS": "true", "GITHUB_REPOSITORY": "acme/ml",
        "GITHUB_API_URL": fork.forge.url, "GITHUB_TOKEN": "user:ann", "BUILD": killed.outputs["build"]["build"],
        "PULUMI_BACKEND_URL": fork.forge.env["PULUMI_BACKEND_URL"],
        "PATH": os.pathsep.join([*map(str, fork.forge.path), os.environ["PATH"]]),
    }  # fmt: skip
    command = [sys.executable, "-m", "cli", "ci", "deploy"]
    done = subprocess.run(command, cwd=fork.work, env=os.environ | environment, capture_output=True, text=True)
    killed.status = "completed"
    assert "holds the lock and may be alive" in done.stderr, done.stderr
    assert locks(fork) == [lock]

    run = next_one(fork, "the next one")
    assert run.conclusion == "success", run.log
    assert "the run that locked the state of dev is over: removing its lock" in run.log
    assert locks(fork) == []
    built = (fork.folder / "registry" / "built").read_text().splitlines()
    assert len(built) == 4, "at first three images, then that of the app alone: the others have the same content"
    state = fork.folder / "pulumi" / ".pulumi" / "stacks" / "mlops" / "dev.json"
    assert len(json.loads(state.read_text())) == 20

    # A person, at a machine of the same name even, who began before any run.
    someone = {"pid": 1, "username": "ann", "hostname": socket.gethostname()}
    lock.write_text(json.dumps(someone | {"timestamp": (datetime.now(UTC) - timedelta(hours=1)).isoformat()}))
    run = next_one(fork, "while somebody holds it")
    assert run.conclusion == "failure"
    assert "holds the lock and may be alive; if it is not: environments/pulumi dev cancel --yes" in run.log
    assert locks(fork) == [lock]
