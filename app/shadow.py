from __future__ import annotations

import threading
from collections import deque
from dataclasses import replace
from itertools import groupby

from app.challenger import Challenger, Scores
from app.metrics import Metrics
from app.recorder import Batch, Recorder

_QUEUED_ROWS = 20_000
_AT_ONCE = 32  # requests: a caller's own waits for no more than these
_IDLE_SECONDS = 0.25


class Shadow:
    """Lets the challenger score what the champion has answered, off the request's path; then the row is logged.

    Its queue is bounded: what finds no place is logged without the challenger's score, and counted.
    """

    def __init__(self, recorder: Recorder, metrics: Metrics):
        self._recorder, self._metrics = recorder, metrics
        self._queue: deque[Batch] = deque()
        self._added = self._taken = 0  # rows; each counted by one thread
        self._challenger: Challenger | None = None
        self._there, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._there.set()
        self._thread.join(timeout=5)

    def add(self, batch: Batch) -> None:
        if self._added - self._taken + len(batch.rows) > _QUEUED_ROWS:
            self.log(batch, Scores(fault="dropped"))
            return
        self._added += len(batch.rows)
        self._queue.append(batch)
        self._there.set()

    def log(self, batch: Batch, trial: Scores) -> None:
        self._metrics.challenger_rows.labels(trial.fault or "scored").inc(len(batch.rows))
        if trial.seconds is not None:
            self._metrics.challenger_seconds.observe(trial.seconds)
        self._challenger = batch.live.challenger
        self._recorder.add(replace(batch, trial=trial))

    def _run(self) -> None:
        while not self._stop.is_set() or self._queue:
            self._there.wait(_IDLE_SECONDS)
            self._there.clear()
            while batches := [self._queue.popleft() for _ in range(min(_AT_ONCE, len(self._queue)))]:
                self._taken += sum(len(batch.rows) for batch in batches)
                for challenger, group in groupby(batches, key=lambda batch: batch.live.challenger):
                    asked = list(group)
                    assert challenger
                    seconds = 1 + sum(challenger.budget(len(batch.rows)) for batch in asked)
                    for batch, trial in zip(asked, challenger.score([batch.rows for batch in asked], seconds), strict=True):
                        self.log(batch, trial)
                self._revive()
            self._revive()

    def _revive(self) -> None:
        if self._challenger:
            self._challenger.revive()
