"""The workflows under act bring one commit and one model through dev and staging to prod, and back; bad ones stop."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl

from tests import synthetic
from tests.delivery.forge import Forge
from tests.delivery.fork import STAGES, Fork
from tests.delivery.runner import Run


def prove(folder: Path) -> dict[str, Any]:
    with Forge(folder / "forge") as forge:
        fork = Fork(folder / "fork", forge).on_machines()
        fork.commit("made from the template")
        try:
            story = Story(fork)
            found: dict[str, dict[str, Any]] = {"code": story.code(), "model": story.model(), "back": story.back()}
        finally:
            fork.stop()
        refused = len(forge.problems)
    holds = all(value for part in found.values() for key, value in part.items() if key.startswith("ok_"))
    slowest = max(value for key, value in found["back"].items() if key.endswith("_seconds"))
    figures = {"slowest_rollback_seconds": slowest, "refused_requests": refused}
    return {**found, **figures, "holds": holds and slowest <= 60 and not refused}


class Story:
    def __init__(self, fork: Fork):
        self.fork, self.forge = fork, fork.forge

    def code(self) -> dict[str, Any]:
        fork, forge = self.fork, self.forge
        closed = self.delivered(forge.push(fork.work))
        found: dict[str, Any] = {
            "ok_green_without_environments": closed.conclusion == "success" and not forge.environments
        }
        forge.variables["MLOPS_ENVIRONMENTS"] = json.dumps(STAGES)
        run = self.pushed("the first version", "app/__init__.py", "# the first version")
        built = json.loads(run.outputs["build"]["build"])["artifacts"]["wheel"]
        (pull,) = forge.pulls.values()
        merged = forge.merge(pull["number"])
        digests = {stage: self.wheel(stage) for stage in STAGES}
        found["digests"] = {"build": built} | digests
        found["ok_four_digests_equal"] = {built, *digests.values()} == {built}
        found["ok_nothing_built_again"] = [run.workflow for run in merged] == ["production.yml"]
        # One does not start anywhere, one in staging alone.
        for stage, line in (("dev", "raise SystemExit('broken')"), ("staging", _ONLY_IN_STAGING)):
            run = self.pushed(f"broken in {stage}", "app/main.py", line)
            stopped = [job for job in ("dev", "staging", "promote") if run.jobs[job] == "failure"]
            found[f"ok_bad_commit_stops_in_{stage}"] = stopped == [stage] and self.wheel("prod") == built
            fork.change("app/main.py", (f"{line}\n", ""))
        return found

    def model(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for stage in STAGES:
            self.until_tracking(stage)
        run = self.forge.dispatch("train.yml", environment="dev")
        digest = run.outputs["train"]["digest"]
        found |= {"digest": digest, "train_seconds": round(run.seconds, 1), "ok_trained": run.conclusion == "success"}
        self.promoted("here", "dev", digest, found)
        refused = self.promote("dev", "staging", digest)
        found["ok_a_foreign_key_is_refused"] = refused.conclusion == "failure" and "signing-key trust" in refused.log
        for source, target in (("dev", "staging"), ("staging", "prod")):
            keys = self.mlops(source, "signing-key", "list")
            self.mlops(target, "signing-key", "trust", "-", data=keys)
            self.promoted(source, target, digest, found)
        found["champions"] = {stage: self.champion(stage) for stage in STAGES}
        found["ok_four_digests_equal"] = {digest, *found["champions"].values()} == {digest}
        # The target shuffled: it learns nothing.
        rows = self.fork.work / "training" / "models" / synthetic.MODEL / "rows.parquet"
        frame = pl.read_parquet(rows)
        frame.with_columns(pl.col("y").shuffle(seed=1)).write_parquet(rows)
        self.pushed("bad data", "README.md", "Shuffled.")
        run = self.forge.dispatch("train.yml", environment="dev")
        bad = run.outputs["train"]["digest"]
        found["ok_a_bad_model_is_refused"] = run.conclusion == "failure" and "refused" in run.log and bad != digest
        found["ok_and_cannot_be_promoted"] = self.promote("dev", "staging", bad).conclusion == "failure"
        found["ok_and_serves_nowhere"] = {self.champion(stage) for stage in STAGES} == {digest}
        return found

    def back(self) -> dict[str, Any]:
        """Of a second version of the code, and of a second model, in prod."""
        found: dict[str, Any] = {}
        first, model = self.wheel("prod"), self.champion("prod")
        self.pushed("the second version", "app/__init__.py", "# the second version")
        self.forge.merge(max(self.forge.pulls))
        second = self.wheel("prod")
        run = self.forge.dispatch("rollback.yml", environment="prod", what="app", why="callers complain")
        found["app_seconds"] = round(run.seconds, 1)
        found["ok_app_to_the_right_one"] = run.conclusion == "success" and self.wheel("prod") == first != second
        found["ok_proposed_to_stay"] = "Pin" in self.forge.pulls[max(self.forge.pulls)]["title"]
        run = self.pushed("nothing of the code", "README.md", "More.")
        found["ok_the_next_push_does_not_bring_it_back"] = run.jobs["dev"] == "failure" and "was withdrawn" in run.log
        run = self.pushed("repaired", "app/__init__.py", "# the third version")
        found["ok_a_repaired_one_passes"] = run.conclusion == "success" and self.wheel("staging") not in (first, second)

        synthetic.frame(seed=3).write_parquet(self.fork.work / "training" / "models" / synthetic.MODEL / "rows.parquet")
        self.pushed("other data", "README.md", "Fresh.")
        other = self.forge.dispatch("train.yml", environment="dev").outputs["train"]["digest"]
        self.mlops("prod", "smoke")
        found["ok_no_environment_is_passed_by"] = self.promote("dev", "prod", other).conclusion == "failure"
        self.promoted("dev", "staging", other, found)
        self.promote("staging", "prod", other, mode="full")
        found["ok_another_model_serves"] = self.champion("prod") == other != model
        self.mlops("prod", "smoke")
        run = self.forge.dispatch("rollback.yml", environment="prod", what="model", why="callers complain")
        found["model_seconds"] = round(run.seconds, 1)
        found["ok_model_to_the_right_one"] = run.conclusion == "success" and self.champion("prod") == model
        run = self.forge.dispatch("rollback.yml", environment="staging", what="infrastructure", why="a test")
        found["infrastructure_seconds"] = round(run.seconds, 1)
        found["ok_infrastructure"] = run.conclusion == "success"
        return found

    def pushed(self, message: str, file: str, line: str) -> Run:
        self.fork.pull()
        with (self.fork.work / file).open("a") as target:
            target.write(f"{line}\n")
        self.fork.commit(message)
        return self.delivered(self.forge.push(self.fork.work))

    def delivered(self, runs: list[Run]) -> Run:
        (run,) = [run for run in runs if run.workflow == "deliver.yml"]
        return run

    def promote(self, source: str, target: str, digest: str, mode: str = "shadow") -> Run:
        about: dict[str, Any] = {
            "from": source,
            "environment": target,
            "digest": digest,
            "mode": mode,
            "why": "a proof",
        }
        return self.forge.dispatch("promote.yml", **about)

    def promoted(self, source: str, target: str, digest: str, found: dict[str, Any]) -> None:
        run = self.promote(source, target, digest)
        assert run.conclusion == "success", run.log
        found[f"promote_to_{target}_seconds"] = round(run.seconds, 1)

    def wheel(self, stage: str) -> str:
        return self.fork.deployments(stage)[-1]["build"]["artifacts"]["wheel"]

    def champion(self, stage: str) -> str:
        current = self.fork.environment(stage).model(synthetic.MODEL).releases.current()
        return current.champion if current else ""

    def mlops(self, stage: str, *words: str, data: str | None = None) -> str:
        command = [sys.executable, "-m", "cli", "--env", stage, "--json", *words]
        done = subprocess.run(command, cwd=self.fork.work, input=data, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def until_tracking(self, stage: str) -> None:
        deadline = time.monotonic() + 120
        while json.loads(self.mlops(stage, "status"))["tracking"]["state"] != "ready":
            assert time.monotonic() < deadline, f"MLflow of {stage} does not answer"
            time.sleep(1)


_ONLY_IN_STAGING = "import os; assert os.environ.get('MLOPS_ENV') != 'staging', 'broken'"
