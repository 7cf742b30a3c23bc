"""MLflow over its REST API, for what does not need its client library."""

import os
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

    def _ask(self, method: str, path: str, **values: Any) -> dict[str, Any] | None:
        """None if it does not exist."""
        url = f"{_API}{path}"
        answer = self._http.get(url, params=values) if method == "GET" else self._http.request(method, url, json=values)
        if answer.status_code == 404:
            return None
        if answer.status_code != 200:
            raise UserError("tracking", self._url, f"{path} answered {answer.status_code}: {answer.text[:200]}")
        return answer.json()
