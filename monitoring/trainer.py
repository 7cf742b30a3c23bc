"""Where a training that is due runs: `MLOPS_TRAINER` is `local` (a process beside the controller), `github:OWNER/NAME` (the
workflow *train* of that repository, with the token in MLOPS_GITHUB_TOKEN), or empty: on a cluster its CronJob asks each day
whether one is due."""

import os
import subprocess
import sys
import threading
import time
from typing import Protocol

import httpx

from mlops.client import http
from mlops.environment import ROOT
from mlops.errors import UserError
from mlops.registered_model import RegisteredModel
from mlops.retraining import Action

_PATIENCE_SECONDS = 3600.0


class Trainer(Protocol):
    def start(self, action: Action, why: str) -> None:
        """Whoever is asked twice trains once: the run claims its place in the bucket."""


class Local:
    def __init__(self, model: RegisteredModel):
        self._model = model
        self._child: subprocess.Popen[bytes] | None = None

    def start(self, action: Action, why: str) -> None:
        if self._child and self._child.poll() is None:
            return
        words = ["--json", "--model", self._model.name, "retrain", "--action", action, "--why", why]
        self._child = subprocess.Popen([sys.executable, "-m", "cli", *words], cwd=ROOT, stdout=sys.stderr)
        threading.Thread(target=self._child.wait, daemon=True).start()  # until then one that was killed seems to live


class GitHub:
    def __init__(self, model: RegisteredModel, repository: str):
        self._model, self._repository = model, repository
        self._again = 0.0

    def start(self, action: Action, why: str) -> None:
        if time.monotonic() < self._again:  # the workflow waits for a machine, or for its turn
            return
        payload = {"environment": self._model.environment, "model": self._model.name, "action": action, "why": why}
        token = os.environ.get("MLOPS_GITHUB_TOKEN", "").strip()
        if not token:
            raise UserError(
                "MLOPS_GITHUB_TOKEN", "", f"set it to a token that may write contents of {self._repository}"
            )
        headers = {"authorization": f"Bearer {token}", "accept": "application/vnd.github+json"}
        url = os.environ.get("GITHUB_API_URL", "https://api.github.com")
        body = {"event_type": "drift", "client_payload": payload}
        try:
            answer = http(url, headers=headers, timeout=10).post(f"/repos/{self._repository}/dispatches", json=body)
        except httpx.HTTPError as error:
            raise UserError("MLOPS_TRAINER", self._repository, f"GitHub does not answer ({error})") from None
        if not answer.is_success:
            hint = f"GitHub answered {answer.status_code}: {answer.text[:200]}"
            raise UserError("MLOPS_TRAINER", self._repository, hint)
        self._again = time.monotonic() + _PATIENCE_SECONDS


def trainer(model: RegisteredModel) -> Trainer | None:
    kind, _, repository = os.environ.get("MLOPS_TRAINER", "").partition(":")
    if kind == "github" and repository:
        return GitHub(model, repository)
    if kind in ("", "local"):
        return Local(model) if kind else None
    raise UserError("MLOPS_TRAINER", os.environ["MLOPS_TRAINER"], "write local, github:OWNER/NAME, or nothing")
