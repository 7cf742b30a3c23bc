"""MLflow: where people look up runs and versions. Nothing that serves depends on it."""

import json
import os
import socket
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any

from mlops.environment import ROOT
from mlops.errors import UserError
from mlops.releases import author
from mlops.tracking import require_reachable

_SETTINGS = {
    "GIT_PYTHON_REFRESH": "quiet",  # an image has no git
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def commit() -> str:
    def git(*words: str) -> str:
        here = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        command = ["git", "-C", str(ROOT), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=here).stdout.strip()

    try:
        return f"{git('rev-parse', 'HEAD')}{'-changed' if git('status', '--porcelain') else ''}"
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("MLOPS_COMMIT", "unknown")


class Registry:
    """Through MLflow's client alone: its fluent interface resumes whatever run the environment names."""

    def __init__(self, uri: str, model: str):
        """Raises UserError if the server does not answer."""
        require_reachable(uri)
        os.environ.update(_SETTINGS)
        import mlflow

        mlflow.set_tracking_uri(uri)
        self._client, self._model = mlflow.MlflowClient(uri, uri), model
        self._experiment = self._find_experiment()
        self.commit = commit()

    def _find_experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        with suppress(MlflowException):  # it exists
            return self._client.create_experiment(self._model)
        found = self._client.get_experiment_by_name(self._model)
        if found is None:
            raise UserError("tracking", self._model, "is no experiment of MLflow, and cannot become one")
        if found.lifecycle_stage == "deleted":  # on MLflow's page
            self._client.restore_experiment(found.experiment_id)
        return found.experiment_id

    @contextmanager
    def run(self, origin: dict[str, Any], environment: str) -> Generator[str]:
        """Yields the run's id, after it has ended the runs of killed trainings. `origin`: the provenance of the bundle."""
        self._end_killed_runs()
        tags = {"fingerprint": origin["data"]["fingerprint"], "commit": self.commit, "environment": environment}
        tags |= {"host": socket.gethostname(), "pid": str(os.getpid()), "mlflow.user": author()}
        run = self._client.create_run(
            self._experiment, tags=tags, run_name=f"train {origin['windows']['train']}"
        ).info.run_id
        self._status = "FAILED"
        try:
            self._log_data(run, origin)
            yield run
        finally:
            self._client.set_terminated(run, self._status)

    def _log_data(self, run: str, origin: dict[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput

        rows, windows = origin["data"], origin["windows"]
        profile = json.dumps({"num_rows": rows["train_rows"] + rows["holdout_rows"], **windows})
        data = Dataset(
            self._model, rows["fingerprint"][:36], "local", json.dumps({"model": self._model}), profile=profile
        )
        self._client.log_inputs(run, [DatasetInput(data)])

    def _end_killed_runs(self) -> None:
        """Those of this machine."""
        running = f"attributes.status = 'RUNNING' and tags.host = '{socket.gethostname()}'"
        for run in self._client.search_runs([self._experiment], running):
            try:
                os.kill(int(run.data.tags.get("pid", "0")), 0)
            except (OSError, ValueError):
                self._client.set_terminated(run.info.run_id, "KILLED")

    def log(
        self, run: str, parameters: dict[str, Any], metrics: dict[str, float], digest: str, gate: str, folder: str
    ) -> None:
        """A run that the gate refused ends as failed, under a name that says so."""
        from mlflow.entities import Metric, Param, RunTag

        now = time.time_ns() // 1_000_000
        tags = {"digest": digest, "gate": gate, "mlflow.runName": f"{digest[:12]} {gate}"}
        self._client.log_batch(
            run,
            [Metric(name, value, now, 0) for name, value in metrics.items() if value == value],
            [Param(name, str(value)[:500]) for name, value in parameters.items()],
            [RunTag(name, value) for name, value in tags.items()],
        )
        self._client.log_artifacts(run, folder)
        self._status = "FINISHED" if gate == "passed" else "FAILED"

    def register(self, run_id: str, digest: str, gate: str) -> str:
        """One version a digest, however often it is trained."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(self._model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        versions = self._client.search_model_versions(f"name = '{self._model}'")
        if known := [version.version for version in versions if version.tags.get("digest") == digest]:
            return known[0]
        source = f"{self._client.get_run(run_id).info.artifact_uri}/bundle"
        tags = {"digest": digest, "gate": gate}
        return self._client.create_model_version(self._model, source, run_id, tags=tags).version
