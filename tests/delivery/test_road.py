"""The workflows themselves, under act, on real git, against a stand-in of GitHub; `make prove road` has it with real
processes, and a model.

What act and the stand-in do not show is checked as text in test_workflows.py: tokens' permissions, time-outs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.delivery.forge import Forge
from tests.delivery.fork import STAGES, Fork
from tests.delivery.runner import Run, act

pytestmark = pytest.mark.skipif(act() is None, reason="act is not installed: go install github.com/nektos/act")


@pytest.fixture
def fork(tmp_path: Path) -> Iterator[Fork]:
    with Forge(tmp_path / "forge") as forge:
        fork = Fork(tmp_path / "fork", forge).on_clusters()
        fork.commit("made from the template")
        yield fork
        assert forge.problems == []


def delivered(runs: list[Run]) -> Run:
    (run,) = [run for run in runs if run.workflow == "deliver.yml"]
    return run


def pushed(fork: Fork, message: str, file: str, line: str) -> Run:
    fork.pull()
    with (fork.work / file).open("a") as target:
        target.write(f"{line}\n")
    fork.commit(message)
    return delivered(fork.forge.push(fork.work))


def test_a_commit_reaches_production_and_comes_back(fork: Fork) -> None:
    forge = fork.forge
    run = delivered(forge.push(fork.work))
    assert (run.conclusion, {name for name, each in run.jobs.items() if each == "success"}) == ("success", {"closed"})
    assert "no environments yet" in run.summary
    assert forge.environments == {}, "naming one would have made it, open to all"

    forge.variables["MLOPS_ENVIRONMENTS"] = json.dumps(STAGES)
    run = pushed(fork, "The first version", "app/__init__.py", "# the first version")
    assert run.conclusion == "success", run.log
    (pull,) = forge.pulls.values()
    first = fork.running("dev")
    assert first[:12] in run.summary
    assert fork.running("staging") == first
    assert fork.deployments("prod") == []

    (run,) = forge.merge(pull["number"])
    assert (run.workflow, run.conclusion) == ("production.yml", "success"), run.log
    assert fork.running("prod") == first

    # What does not start stops in dev, which goes back to what ran there.
    run = pushed(fork, "Broken", "app/main.py", "raise SystemExit('broken')")
    assert (run.jobs["dev"], run.jobs["staging"], run.jobs["promote"]) == ("failure", "skipped", "skipped"), run.log
    assert "its pods crash" in run.log
    assert "runs again" in run.log
    assert {fork.running(stage) for stage in STAGES} == {first}
    assert [pull["number"] for pull in forge.pulls.values() if pull["state"] == "open"] == []

    # Repaired and promoted, then rolled back by hand: it does not come back with the next push.
    fork.change("app/main.py", ("raise SystemExit('broken')", "# the second version"))
    run = pushed(fork, "The second version", "README.md", "It works again.")
    assert run.conclusion == "success", run.log
    second = fork.running("staging")
    forge.merge(max(forge.pulls))
    assert fork.running("prod") == second != first
    run = forge.dispatch("rollback.yml", environment="prod", what="app", why="callers complain")
    assert run.conclusion == "success", run.log
    assert fork.running("prod") == first
    pinned = forge.pulls[max(forge.pulls)]
    assert (pinned["state"], "Pin" in pinned["title"], "callers complain" in pinned["body"]) == ("open", True, True)
    forge.merge(pinned["number"])
    assert fork.running("prod") == first

    run = pushed(fork, "Nothing of the code", "README.md", "More of it.")
    assert run.jobs["dev"] == "failure", "the build is the one that was withdrawn"
    assert "was withdrawn from prod by ann (callers complain)" in run.log


def test_a_fresh_fork_is_green_and_names_no_environment(tmp_path: Path) -> None:
    """A new repository without variables: every workflow, by each of its events."""
    here = Path(__file__).parent
    with Forge(tmp_path / "forge") as forge:
        fork = Fork(tmp_path / "fork", forge)
        forge.env |= {"FORGE_UV": str((fork.bin / "uv").resolve()), "REGISTRY": str(tmp_path / "registry")}
        forge.path = [here / "bin_fresh", here / "bin_cluster"]
        fork.commit("made from the template")
        runs = forge.push(fork.work)
        for file in ("train.yml", "watch.yml"):
            runs.append(forge.schedule(file))
        runs.append(forge.dispatch("train.yml"))
        back: dict[str, Any] = {"environment": "prod", "why": "a test"}
        runs += [forge.dispatch("rollback.yml", what=what, **back) for what in ("model", "app", "infrastructure")]
        runs.append(forge.dispatch("promote.yml", **back, digest="abc", **{"from": "dev"}))
        for run in runs:
            assert run.conclusion in ("success", "skipped"), run.log
            said = run.workflow in ("ci.yml", "comment.yml") or "mlops adopt makes it yours" in run.summary
            assert said, f"{run.workflow} says why it does nothing"
        assert {run.workflow for run in runs} == {
            path.name for path in (here.parents[1] / ".github" / "workflows").glob("*.yml")
        } - {"deploy.yml", "production.yml"}
        assert (forge.environments, forge.problems) == ({}, [])
