import threading
import time
from dataclasses import dataclass, field
from typing import Any, Self

import httpx

from mlops.client import Client
from mlops.environment import Environment
from mlops.errors import UserError
from mlops.log_schema import id_time


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
                at = id_time(answer["predictions"][0]["id"]) or time.time()
                self.answers.append(Answer(at, answer["model_version"]))
            except (UserError, httpx.HTTPError) as error:
                self.answers.append(Answer(time.time(), error=str(error)))
            sent += 1

    @property
    def failed(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.error]

    def wait_for(self, version: str, seconds: float) -> float:
        """Until this model version answers; returns how long that took."""
        started, seen = time.monotonic(), len(self.answers)
        while time.monotonic() - started < seconds:
            if any(answer.model_version == version for answer in self.answers[seen:]):
                return time.monotonic() - started
            time.sleep(0.02)
        raise UserError("release", version[:12], f"does not answer after {seconds:g} s")
