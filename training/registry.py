"""MLflow: where people look runs and versions up. Nothing that serves depends on it."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from mlops.environment import ROOT
from mlops.errors import Fault
from mlops.tracking import reachable

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")


def commit() -> str:
    try:
        git = ["git", "-C", str(ROOT)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout.strip()
        return f"{head}{'-changed' if changed else ''}"
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("MLOPS_COMMIT", "unknown")


class Registry:
    def __init__(self, uri: str, model: str):
        if not reachable(uri):
            raise Fault("tracking", uri, "MLflow does not answer there; start the platform: make up")
        import mlflow

        mlflow.set_tracking_uri(uri)
        self._experiment = mlflow.set_experiment(model).experiment_id
        self._mlflow, self._client, self._model = mlflow, mlflow.MlflowClient(uri), model
        self._host = platform.node()

    @contextmanager
    def run(self, name: str, parameters: dict[str, Any], tags: dict[str, str]) -> Generator[Any]:
        """A run; those of this machine whose process was killed are closed first."""
        self._close_dead_runs()
        tags = tags | {"host": self._host, "pid": str(os.getpid())}
        with self._mlflow.start_run(run_name=name, tags=tags) as run:
            self._mlflow.log_params(parameters)
            yield run

    def _close_dead_runs(self) -> None:
        mine = f"attributes.status = 'RUNNING' and tags.host = '{self._host}'"
        for run in self._client.search_runs([self._experiment], mine):
            try:
                os.kill(int(run.data.tags.get("pid", "0")), 0)
            except (OSError, ValueError):
                self._client.set_terminated(run.info.run_id, "KILLED")

    def log(self, metrics: dict[str, float], tags: dict[str, str], folder: str) -> None:
        self._mlflow.log_metrics({name: value for name, value in metrics.items() if value == value})
        self._mlflow.set_tags(tags)
        self._mlflow.log_artifacts(folder)

    def register(self, run: Any, digest: str, verdict: str) -> str:
        """One version a digest, however often it is trained."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(self._model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        if known := self._versions(digest):
            return known[0]
        tags = {"digest": digest, "gate": verdict}
        source = f"{run.info.artifact_uri}/bundle"
        return self._client.create_model_version(self._model, source, run.info.run_id, tags=tags).version

    def _versions(self, digest: str) -> list[str]:
        return [v.version for v in self._client.search_model_versions(f"name = '{self._model}'") if v.tags.get("digest") == digest]
