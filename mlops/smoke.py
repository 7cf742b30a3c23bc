"""The service asked for rows of which the answer is known."""

import time
from contextlib import suppress
from typing import Any

import httpx

from mlops import promotion
from mlops.client import Client, http
from mlops.environment import Environment
from mlops.errors import UserError
from mlops.registered_model import RegisteredModel
from mlops.sandbox import TOLERANCE

_SECONDS, _EMPTY = 60, "no model released"


def ask(environment: Environment, model: RegisteredModel) -> dict[str, Any]:
    """How many golden rows the champion answered as it did in training; those that a challenger answered are not compared.
    Raises UserError if the service is not ready, or an answer is another."""
    if reason := _reason(environment):
        if reason == _EMPTY and promotion.champion(model) is None:
            return {"rows": 0, "digest": ""}
        raise UserError("service", environment.endpoint, f"is not ready: {reason}")
    served = promotion.champion(model)
    assert served
    golden = served.json("golden.json")
    answer = Client(environment).predict(golden["rows"])
    compared = 0
    for position, (found, want) in enumerate(zip(answer["predictions"], golden["scores"], strict=True)):
        if (found.get("model_version") or answer["model_version"]) != served.digest:
            continue
        compared += 1
        if not abs(found["score"] - want) <= TOLERANCE * max(1.0, abs(want)):
            raise UserError(
                f"golden row {position}",
                found["score"],
                f"is not {want}, as {served.digest[:12]} scored it in training",
            )
    return {"rows": compared, "digest": served.digest}


def _reason(environment: Environment) -> str:
    """Why it is not ready, '' if it is, after it had time to load a model."""
    deadline, reason = time.monotonic() + _SECONDS, "does not answer"
    while time.monotonic() < deadline:
        with suppress(httpx.HTTPError, ValueError, KeyError):
            reason = http(environment.endpoint, timeout=5).get("/readyz").json()["reason"]
            if reason in ("", _EMPTY):
                return reason
        time.sleep(0.2)
    return reason
