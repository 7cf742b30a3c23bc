import csv
import os
from pathlib import Path
from typing import Any

import httpx

from mlops.environment import Environment
from mlops.errors import UserError


def api_key(environment: Environment) -> str:
    """MLOPS_API_KEY, or the key that the embedded platform made for its user."""
    kept = environment.keyring.parent / "client.key"
    if key := os.environ.get("MLOPS_API_KEY"):
        return key
    if kept.exists():
        return kept.read_text("utf-8").strip()
    raise UserError("MLOPS_API_KEY", "", "set it to an API key; create one: mlops api-key new NAME")


def http(url: str, **options: Any) -> httpx.Client:
    """This machine is asked directly, whatever proxies and certificates the environment names for others."""
    try:
        loopback = httpx.URL(url).host in ("127.0.0.1", "localhost", "::1")
        return httpx.Client(base_url=url, trust_env=not loopback, **options)
    except (httpx.InvalidURL, ImportError, OSError, ValueError) as error:
        hint = f"cannot be asked with the environment's proxy and certificate settings ({error})"
        raise UserError("url", url, hint) from None


class Client:
    """The service as any caller sees it."""

    def __init__(self, environment: Environment):
        self._url = environment.endpoint
        headers = {"authorization": f"Bearer {api_key(environment)}"}
        self._http = http(self._url, headers=headers, timeout=30)

    def predict(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return self._ask("POST", "/predict", json={"rows": rows})

    def model(self) -> str:
        """The name of the model that is served."""
        return self._ask("GET", "/model")["contract"]["model"]

    def outcomes(self, outcomes: list[dict[str, Any]]) -> dict[str, int]:
        totals: dict[str, int] = {}
        for start in range(0, len(outcomes), 10_000):
            results = self._ask("POST", "/outcomes", json={"outcomes": outcomes[start : start + 10_000]})["results"]
            for name, count in results.items():
                totals[name] = totals.get(name, 0) + count
        return totals

    def _ask(self, method: str, path: str, **body: Any) -> dict[str, Any]:
        try:
            answer = self._http.request(method, path, **body)
        except httpx.HTTPError as error:
            hint = f"the service does not answer ({type(error).__name__}); start it: make up"
            raise UserError("endpoint", self._url, hint) from None
        if answer.status_code != 200:
            raise UserError(path, answer.status_code, _detail(answer)[:500])
        return answer.json()


def read_outcomes(file: Path) -> list[dict[str, Any]]:
    """A CSV file with the columns id and value."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            return [{"id": row["id"], "value": float(row["value"])} for row in csv.DictReader(lines)]
    except OSError as error:
        raise UserError("file", str(file), error.strerror or "cannot be read") from None
    except (KeyError, ValueError, TypeError) as error:
        raise UserError("file", str(file), f"needs the columns id and value, a number ({error})") from None


def _detail(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):  # from a proxy, not from the service
        return answer.text
