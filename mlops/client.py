from __future__ import annotations

import os
from typing import Any

import httpx

from mlops.environment import Environment
from mlops.errors import Fault


def api_key(environment: Environment) -> str:
    """The caller's own key: MLOPS_API_KEY, or the one that the embedded platform keeps for you."""
    kept = environment.keyring.parent / "client.key"
    if key := os.environ.get("MLOPS_API_KEY"):
        return key
    if kept.exists():
        return kept.read_text().strip()
    raise Fault("MLOPS_API_KEY", "", "set it to an API key; make one: mlops key new NAME --role predict --role outcomes")


class Client:
    """The service from outside, as any caller has it."""

    def __init__(self, environment: Environment):
        self._url = environment.endpoint
        self._http = httpx.Client(base_url=self._url, headers={"authorization": f"Bearer {api_key(environment)}"}, timeout=30)

    def predict(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return self._post("/predict", {"rows": rows})

    def outcomes(self, outcomes: list[dict[str, Any]]) -> dict[str, int]:
        totals: dict[str, int] = {}
        for start in range(0, len(outcomes), 10_000):
            for name, count in self._post("/outcomes", {"outcomes": outcomes[start : start + 10_000]})["results"].items():
                totals[name] = totals.get(name, 0) + count
        return totals

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            answer = self._http.post(path, json=body)
        except httpx.HTTPError as error:
            raise Fault("endpoint", self._url, f"the service does not answer ({type(error).__name__}); start it: make up") from None
        if answer.status_code != 200:
            raise Fault(path, answer.status_code, _detail(answer)[:500])
        return answer.json()


def _detail(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):  # not of the service, but of something before it
        return answer.text
