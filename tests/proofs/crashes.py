"""kill -9 of `train`, `release` and `score`, and what the next run makes of it.

A point is a number of seconds, after which the process is killed from outside, or a place among its changes to the
world (a put, a rename, a request to MLflow): the how-manieth step, one before and one after each change, or a text
that the change mentions, before which it kills itself. `python -m tests.proofs.crashes FUSE VERB …` is the real
command with that fuse.
"""

from __future__ import annotations

import atexit
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from environments.local.platform import free_port
from mlops import attestations
from mlops import bundle as bundles
from mlops.attestations import require_approval, require_gate
from mlops.environment import ROOT, Environment
from mlops.errors import UserError, VerificationError
from mlops.registered_model import RegisteredModel
from tests import synthetic
from tests.proofs import batch
from tests.service import environment as make_environment

Point = int | float | str


@dataclass(frozen=True)
class Place:
    environment: Environment
    models: Path
    tracking: str

    @property
    def model(self) -> RegisteredModel:
        """As the bucket has it now: what was read before it was put back counts no more."""
        return self.environment.model(synthetic.MODEL)

    def start(self, *words: str, fuse: int | str | None = None) -> subprocess.Popen[str]:
        program = ["cli"] if fuse is None else ["tests.proofs.crashes", str(fuse)]
        told = {"HOME": self.environment.home, "MODELS": self.models, "TRACKING": self.tracking}
        return subprocess.Popen(
            [sys.executable, "-m", *program, "--model", synthetic.MODEL, "--json", *words],
            cwd=ROOT, env=os.environ | {f"MLOPS_{name}": str(value) for name, value in told.items()},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, *words: str) -> dict[str, Any]:
        child = self.start(*words)
        output, errors = child.communicate()
        assert child.returncode == 0, output + errors
        return json.loads(output.splitlines()[-1])

    def measured(self, *words: str) -> tuple[dict[str, Any], int, float]:
        """Run to the end: the result, the changes to the world, the seconds."""
        began, child = time.monotonic(), self.start(*words, fuse=0)
        output, errors = child.communicate()
        assert child.returncode == 0, output + errors
        return json.loads(output.splitlines()[-1]), int(errors.split()[-1]), time.monotonic() - began

    def crash(self, point: Point, *words: str) -> dict[str, Any] | None:
        """Run and kill -9 at the point; what had been acknowledged by then."""
        child = self.start(*words, fuse=None if isinstance(point, float) else point)
        if isinstance(point, float):
            try:
                child.wait(point)
            except subprocess.TimeoutExpired:
                child.kill()
        output, errors = child.communicate()
        assert child.returncode == -signal.SIGKILL or isinstance(point, float), errors
        return json.loads(output.splitlines()[-1]) if output.endswith("\n") else None


@contextmanager
def place(folder: Path, with_tracking: bool = True) -> Generator[Place]:
    """A model's folder, keys, and MLflow in a process of its own."""
    environment = make_environment(folder / "home")
    made = synthetic.write_model(folder / "models", synthetic.frame())
    (made.folder / "parameters.yaml").write_text("estimator: linear\n")
    if not with_tracking:
        yield Place(environment, folder / "models", environment.tracking)
        return
    port = free_port(5101)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", f"{folder}/mlflow"]
    with (folder / "mlflow.log").open("wb") as log:
        told = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        server = subprocess.Popen(command, env=os.environ | told, stdout=log, stderr=log, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        while not _healthy(url):
            assert server.poll() is None, (folder / "mlflow.log").read_text()
            time.sleep(0.2)
        yield Place(environment, folder / "models", url)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def points(changes: int, seconds: float, wanted: int) -> list[Point]:
    """Half around changes, half at moments, each half spread over the whole run."""
    around = sorted({round(x) for x in np.linspace(1, 2 * changes, wanted // 2)})
    return [*around, *(float(x) for x in np.linspace(0.1, 0.95, wanted - len(around)) * seconds)]


def unsound(at: Place) -> list[str]:
    """What no crash may leave: a bundle, attestation or release that does not verify."""
    model, faults = at.model, []

    def attempt(what: str, step: Callable[[], Any]) -> None:
        try:
            step()
        except UserError as error:
            faults.append(f"{what}: {error}")

    for digest in bundles.digests(model):
        attempt("bundle", lambda digest=digest: bundles.read(model, digest))
        faults += [f"attestation: {bad}" for bad in attestations.read(model, digest)[1]]
    for revision, raw in model.releases.log.tail():
        attempt("record", lambda revision=revision, raw=raw: model.releases.open(revision, raw, None))
    for release in model.releases.read():
        attempt("gate", lambda release=release: require_gate(model, release.champion))
        attempt("approval", lambda release=release: require_approval(model, release.champion))
        attempt("bundle", lambda release=release: bundles.read(model, release.champion))
    return faults


def unregistered(at: Place, digest: str) -> list[str]:
    """What MLflow must show after a finished training: one version of its digest, with its files, and nothing running."""
    client = _mlflow(at)
    versions = [
        v for v in client.search_model_versions(f"name = '{synthetic.MODEL}'") if v.tags.get("digest") == digest
    ]
    experiment = client.get_experiment_by_name(synthetic.MODEL)
    running = client.search_runs([experiment.experiment_id], "attributes.status = 'RUNNING'")
    faults = [f"run {run.info.run_id} is RUNNING" for run in running]
    if len(versions) != 1:
        return [*faults, f"{len(versions)} versions of {digest[:12]}"]
    run_id = versions[0].run_id
    files = {file.path.removeprefix("bundle/") for file in client.list_artifacts(run_id, "bundle")}
    return faults + [f"version without {name}" for name in {*bundles.FILES, "manifest.json"} - files]


def _mlflow(at: Place) -> Any:
    import mlflow

    return mlflow.MlflowClient(at.tracking)


def forget(at: Place) -> None:
    """As if nothing had ever been trained; MLflow keeps its runs."""
    from mlflow.exceptions import MlflowException

    shutil.rmtree(Path(at.environment.bucket, "models"), ignore_errors=True)
    try:
        _mlflow(at).delete_registered_model(synthetic.MODEL)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise


def train_faults(at: Place, digest: str, where: list[Point]) -> list[str]:
    """Kill a first training at each point; the next one must end as if nothing had been."""
    faults: list[str] = []
    for point in where:
        forget(at)
        acknowledged = at.crash(point, "train")
        found = unsound(at)
        if acknowledged:
            found += unregistered(at, acknowledged["digest"])
        result = at.run("train")
        found += [f"digest {result['digest'][:12]}, not {digest[:12]}"] * (result["digest"] != digest)
        found += unsound(at) + unregistered(at, digest)
        try:
            require_gate(at.model, digest)
        except VerificationError as refused:
            found.append(f"gate: {refused}")
        faults += [f"train at {point}: {fault}" for fault in found]
    return faults


@contextmanager
def restored(at: Place) -> Generator[Callable[[], None]]:
    """Gives a function that puts the bucket's models back as they are now."""
    models = Path(at.environment.bucket, "models")
    with tempfile.TemporaryDirectory() as kept:
        shutil.copytree(models, kept, dirs_exist_ok=True)

        def restore() -> None:
            shutil.rmtree(models)
            shutil.copytree(kept, models)

        yield restore


def release_faults(at: Place, digest: str, where: list[Point]) -> list[str]:
    """Kill the first release of a bundle at each point; the next one must serve it, and lose none that was acknowledged."""
    faults, before = [], len(at.model.releases.read())
    with restored(at) as restore:
        for point in where:
            restore()
            acknowledged = at.crash(point, "release", digest)
            found, log = unsound(at), at.model.releases.read()
            if acknowledged and acknowledged["revision"] not in {release.revision for release in log}:
                found.append(f"acknowledged revision {acknowledged['revision']} is lost")
            if len(log) - before not in (0, 1):
                found.append(f"{len(log) - before} records of one release")
            done = at.run("release", digest)
            current = at.model.releases.current()
            serving = (current.champion, current.revision) if current else None
            if serving != (digest, done["revision"]) or done["revision"] != len(log) + 1:
                found.append(f"after the next release {current} serves")
            faults += [f"release at {point}: {fault}" for fault in found + unsound(at)]
        restore()
    return faults


def score_faults(at: Place, folder: Path, source: Path, whole: Path, where: list[Point]) -> list[str]:
    """Kill a scoring at each point; the next one must leave the very files of one that was not."""
    faults = []
    for point in where:
        out = folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        acknowledged = at.crash(point, "score", str(source), str(out))
        left = batch.fingerprints(out) if out.exists() else {}
        complete = {part.name for part in batch.parts(out)}
        complete |= {name.replace("part-", "refused-").replace(".parquet", ".jsonl") for name in complete}
        done = at.run("score", str(source), str(out))
        expected = batch.fingerprints(whole)
        found = [] if batch.fingerprints(out) == expected else ["other files"]
        if acknowledged and (acknowledged != done or left != batch.fingerprints(out)):
            found.append("what was acknowledged has changed")
        if any(left.get(name) != expected.get(name) for name in complete):
            found.append("a part that counted as complete was not")
        faults += [f"score at {point}: {fault}" for fault in found]
    return faults


def prove(folder: Path, kills: int = 20) -> dict[str, Any]:
    with place(folder) as at:
        # Before the one that is measured: the very first asks MLflow for more.
        second = at.run("train", "--seed", "1")
        forget(at)
        first, changes, seconds = at.measured("train")
        faults = train_faults(at, first["digest"], train_points := points(changes, seconds, kills))
        again = at.run("train", "--seed", "1")
        if again["digest"] != second["digest"]:
            faults.append(f"seed 1 gives {again['digest'][:12]}, not {second['digest'][:12]}")
        at.run("release", first["digest"])
        with restored(at) as restore:
            _, changes, seconds = at.measured("release", second["digest"])
            restore()
        faults += release_faults(at, second["digest"], release_points := points(changes, seconds, kills))
        source = batch.write(100_000, folder / "rows.parquet")
        _, changes, seconds = at.measured("score", str(source), str(folder / "whole"))
        faults += score_faults(at, folder, source, folder / "whole", score_points := points(changes, seconds, kills))
    return {
        "train_kills": len(train_points), "release_kills": len(release_points), "score_kills": len(score_points),
        "faults": len(faults), "holds": not faults and min(map(len, (train_points, release_points, score_points))) >= kills,
        "reason": "; ".join(faults[:10]),
    }  # fmt: skip


def light(fuse: str) -> None:
    """From here on this process dies where `fuse` says."""
    import requests

    from mlops.store import Store

    steps = itertools.count(1)

    def dangerous(change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*args: Any, **kwargs: Any) -> Any:
            if str(next(steps)) == fuse or (not fuse.isdigit() and fuse in str((args, kwargs))):
                os.kill(os.getpid(), signal.SIGKILL)
            done = change(*args, **kwargs)
            if str(next(steps)) == fuse:
                os.kill(os.getpid(), signal.SIGKILL)
            return done

        return changed

    for kind, name in ((Store, "put"), (Store, "put_new"), (Path, "replace"), (requests.Session, "request")):
        setattr(kind, name, dangerous(getattr(kind, name)))
    atexit.register(lambda: print("changes", (next(steps) - 1) // 2, file=sys.stderr))


if __name__ == "__main__":
    from cli.main import main

    light(sys.argv.pop(1))
    main()
