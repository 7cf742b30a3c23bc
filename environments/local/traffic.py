import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self
from uuid import UUID

import httpx

from mlops.client import Client
from mlops.environment import Environment
from mlops.errors import UserError

_PATIENCE = 600  # seconds: a busy machine is slow, not wrong


def wait(condition: Callable[[], bool], otherwise: str, every: float = 0.1) -> float:
    """Returns how long it took, in seconds. Raises TimeoutError."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > _PATIENCE:
            raise TimeoutError(otherwise)
        time.sleep(every)
    return time.monotonic() - started


@dataclass(frozen=True)
class Answer:
    """One request: when the service answered it (Unix seconds), and the model version, or the error."""

    at: float
    model_version: str = ""
    error: str = ""


@dataclass
class Traffic:
    """A steady caller in a thread, for as long as the `with` block lasts."""

    environment: Environment
    rows: list[dict[str, Any]]
    per_second: float = 50
    answers: list[Answer] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        client, sent, due = Client(self.environment), 0, time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            due = max(due, time.monotonic() - 1) + 1 / self.per_second
            try:
                answer = client.predict([self.rows[sent % len(self.rows)]])
                at = (UUID(answer["predictions"][0]["id"]).int >> 80) / 1000
                self.answers.append(Answer(at, answer["model_version"]))
            except (UserError, httpx.HTTPError) as error:
                self.answers.append(Answer(time.time(), error=str(error)))
            sent += 1

    def wait_for(self, version: str) -> float:
        """Until this model version answers; returns how long that took."""
        seen, otherwise = len(self.answers), f"{version[:12]} does not answer"
        return wait(lambda: version in {each.model_version for each in self.answers[seen:]}, otherwise)
