"""MLflow: where people look up runs and versions. Nothing that serves depends on it."""

import os
import socket
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from mlops.environment import ROOT
from mlops.errors import UserError
from mlops.tracking import reachable
from training.estimator import DEFAULTS

_QUIET = {
    "GIT_PYTHON_REFRESH": "quiet",  # an image has no git
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def commit() -> str:
    def git(*words: str) -> str:
        command = ["git", "-C", str(ROOT), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return f"{git('rev-parse', 'HEAD')}{'-changed' if git('status', '--porcelain') else ''}"
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("MLOPS_COMMIT", "unknown")


class Registry:
    def __init__(self, uri: str, model: str):
        """Raises UserError if the server does not answer."""
        if not reachable(uri):
            raise UserError("tracking", uri, "MLflow does not answer there; start the platform: make up")
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        import mlflow

        mlflow.set_tracking_uri(uri)
        self._experiment = mlflow.set_experiment(model).experiment_id
        self.commit = commit()
        self._mlflow, self._client, self._model = mlflow, mlflow.MlflowClient(uri), model

    @contextmanager
    def run(self, origin: dict[str, Any], environment: str) -> Generator[str]:
        """Yields the run's id, after it has ended the runs of killed trainings. `origin`: the provenance of the bundle."""
        self._end_killed_runs()
        tags = {"fingerprint": origin["data"]["fingerprint"], "commit": self.commit, "environment": environment}
        tags |= {"host": socket.gethostname(), "pid": str(os.getpid())}
        with self._mlflow.start_run(run_name=f"train {origin['windows']['train']}", tags=tags) as run:
            self._mlflow.log_params({"seed": origin["seed"], **origin["windows"], **DEFAULTS, **origin["parameters"]})
            yield run.info.run_id

    def _end_killed_runs(self) -> None:
        """Those of this machine."""
        running = f"attributes.status = 'RUNNING' and tags.host = '{socket.gethostname()}'"
        for run in self._client.search_runs([self._experiment], running):
            try:
                os.kill(int(run.data.tags.get("pid", "0")), 0)
            except (OSError, ValueError):
                self._client.set_terminated(run.info.run_id, "KILLED")

    def log(self, metrics: dict[str, float], tags: dict[str, str], folder: str) -> None:
        self._mlflow.log_metrics({name: value for name, value in metrics.items() if value == value})
        self._mlflow.set_tags(tags)
        self._mlflow.log_artifacts(folder)

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
