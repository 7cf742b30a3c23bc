"""A constant rate of requests against the running app, and what each of them was answered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests import synthetic
from tests.service import Service


@dataclass(frozen=True)
class Answer:
    """`sent` and `at` (of the answer) are Unix seconds; status 0 is no answer at all."""

    thread: int
    sent: float
    at: float
    status: int
    row: dict[str, Any]
    revision: int = 0
    model_version: str = ""
    prediction: dict[str, Any] = field(default_factory=dict)  # id, prediction, score


def numbered(number: int) -> dict[str, Any]:
    """The row of one request; no two are alike."""
    return synthetic.request(
        size=number % 9_973 / 1000, customer=f"c{number}", color=["red", "green", "new"][number % 3]
    )


class Load:
    """Threads with a connection each that keep a rate as far as the service follows; `count` requests, or until the end."""

    def __init__(
        self,
        service: Service,
        per_second: float = 60,
        threads: int = 3,
        count: int | None = None,
        row: Callable[[int], dict[str, Any]] = numbered,
    ):
        self.answers: list[Answer] = []
        self._service, self._every, self._count, self._row = service, threads / per_second, count, row
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(position, threads), daemon=True) for position in range(threads)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self.finish()

    def finish(self) -> None:
        for thread in self._threads:
            thread.join()

    @property
    def good(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.status == 200]

    @property
    def failed(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.status != 200]

    def _run(self, thread: int, step: int) -> None:
        number, due = thread, time.monotonic()
        with httpx.Client(base_url=self._service.url, headers=self._service.http.headers, timeout=10) as http:
            while (self._count is None or number < self._count) and not self._stop.wait(
                max(0.0, due - time.monotonic())
            ):
                self.answers.append(self._ask(http, thread, self._row(number)))
                number, due = number + step, max(due + self._every, time.monotonic() - self._every)

    def _ask(self, http: httpx.Client, thread: int, row: dict[str, Any]) -> Answer:
        sent = time.time()
        try:
            answer = http.post("/predict", json={"rows": [row]})
            at = time.time()
        except httpx.HTTPError:
            return Answer(thread, sent, time.time(), 0, row)
        if answer.status_code != 200:
            return Answer(thread, sent, at, answer.status_code, row)
        body = answer.json()
        return Answer(thread, sent, at, 200, row, body["revision"], body["model_version"], body["predictions"][0])
