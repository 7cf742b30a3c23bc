"""MLflow over its REST API, for what does not need its client library."""

import os
from datetime import UTC, datetime
from typing import Any

import httpx

from mlops.client import http
from mlops.errors import UserError

_API = "/api/2.0/mlflow"


def reachable(url: str) -> bool:
    try:
        return http(url, timeout=3).get("/health").status_code == 200
    except httpx.HTTPError:
        return False


def require_reachable(url: str) -> None:
    if not reachable(url):
        raise UserError("tracking", url, "MLflow does not answer there; start the platform: make up")


class Tracking:
    """Credentials come from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, as for MLflow's own client."""

    def __init__(self, url: str):
        login = (os.environ.get("MLFLOW_TRACKING_USERNAME", ""), os.environ.get("MLFLOW_TRACKING_PASSWORD", ""))
        self._url, self._http = url, http(url, auth=login if login[0] else None, timeout=10)

    def mirror(self, model: str, champion: str, challenger: str | None) -> list[str]:
        """Set both aliases on the versions of these digests; returns the changes. Without a challenger both name the
        champion: deleting an alias needs rights that no user here has."""
        registered = self._ask("GET", "/registered-models/get", name=model)
        if registered is None:
            return []
        current = {a["alias"]: a["version"] for a in registered["registered_model"].get("aliases", [])}
        found = self._ask("GET", "/model-versions/search", filter=f"name = '{model}'", max_results=10_000) or {}
        pairs = [(tag, v["version"]) for v in found.get("model_versions", []) for tag in v.get("tags", [])]
        versions = {tag["value"]: version for tag, version in pairs if tag["key"] == "digest"}
        changed = []
        for alias, digest in (("champion", champion), ("challenger", challenger or champion)):
            wanted = versions.get(digest)
            if wanted and current.get(alias) != wanted:
                self._ask("POST", "/registered-models/alias", name=model, alias=alias, version=wanted)
                changed.append(f"{alias}: version {current.get(alias, 'none')} becomes {wanted}")
        return changed

    def runs(self, model: str, limit: int) -> list[dict[str, Any]]:
        """The newest trainings first. What a run that did not end never logged is None."""
        found = self._ask("GET", "/experiments/get-by-name", experiment_name=model)
        if found is None:
            return []
        asked = {"experiment_ids": [found["experiment"]["experiment_id"]], "order_by": ["attributes.start_time DESC"]}
        answer = self._ask("POST", "/runs/search", max_results=limit, **asked) or {}
        return [_described(run["info"], run.get("data", {})) for run in answer.get("runs", [])]

    def _ask(self, method: str, path: str, **values: Any) -> dict[str, Any] | None:
        """None if it does not exist."""
        url = f"{_API}{path}"
        answer = self._http.get(url, params=values) if method == "GET" else self._http.request(method, url, json=values)
        if answer.status_code == 404:
            return None
        if answer.status_code != 200:
            raise UserError("tracking", self._url, f"{path} answered {answer.status_code}: {answer.text[:200]}")
        return answer.json()


def _described(info: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    tags, parameters, metrics = (
        {each["key"]: each["value"] for each in data.get(kind, [])} for kind in ("tags", "params", "metrics")
    )
    return {
        "run": info["run_id"], "at": datetime.fromtimestamp(int(info["start_time"]) / 1000, UTC),
        "status": info["status"], "digest": tags.get("digest"), "gate": tags.get("gate"), "loss": metrics.get("loss"),
        "train": parameters.get("train"), "holdout": parameters.get("holdout"),
        "by": tags.get("mlflow.user"), "commit": tags.get("commit"),
    }  # fmt: skip
