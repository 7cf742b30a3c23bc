from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Sequence
from itertools import groupby

from msgspec.structs import replace

from app.challenger import Challenger, Scores
from app.metrics import Metrics
from app.recorder import Batch, Recorder

_QUEUED_ROWS = 20_000
_ROWS_AT_ONCE = 64  # a caller whom the challenger is to answer waits for no more than these, or one request
_GATHER_SECONDS = 0.05  # nobody waits for a shadow's score, and one wake for many requests takes less from the callers


class Shadow:
    """Lets the challenger score what the champion has answered, off the request's path; then the row is logged. In the event loop:
    a thread of its own would have requests wait for the interpreter.

    Its queue is bounded: what finds no place is logged without the challenger's score, and counted.
    """

    def __init__(self, recorder: Recorder, metrics: Metrics):
        self._recorder, self._metrics = recorder, metrics
        self._queue: deque[Batch] = deque()
        self._queued = 0  # rows
        self._challenger: Challenger | None = None  # the last that was asked
        self._going = True

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        self._going = False
        await asyncio.wait([self._task], timeout=5)

    def add(self, batch: Batch) -> None:
        rows = len(batch.rows)
        if self._queued + rows > _QUEUED_ROWS:
            self.log([replace(batch, trial=Scores(fault="dropped"))])
            return
        self._queue.append(batch)
        self._queued += rows

    def log(self, batches: Sequence[Batch]) -> None:
        """Of batches that have been tried."""
        results: Counter[str] = Counter()
        for batch in batches:
            assert batch.trial
            results[batch.trial.fault or "scored"] += len(batch.rows)
            if batch.trial.seconds is not None:
                self._metrics.challenger_seconds.observe(batch.trial.seconds)
            self._recorder.add(batch)
            self._challenger = batch.live.challenger
        for result, rows in results.items():
            self._metrics.challenger_rows.labels(result).inc(rows)

    async def _run(self) -> None:
        while self._going or self._queue:
            await asyncio.sleep(_GATHER_SECONDS)
            while batches := self._next():
                for challenger, group in groupby(batches, key=lambda batch: batch.live.challenger):
                    asked = list(group)
                    assert challenger
                    seconds = 1 + sum(challenger.budget(len(batch.rows)) for batch in asked)
                    trials = await challenger.score([batch.rows for batch in asked], seconds)
                    self.log([replace(batch, trial=trial) for batch, trial in zip(asked, trials, strict=True)])
            if self._challenger and self._challenger.down():
                await asyncio.to_thread(self._challenger.revive)

    def _next(self) -> list[Batch]:
        batches, rows = [], 0
        while self._queue and (not batches or rows + len(self._queue[0].rows) <= _ROWS_AT_ONCE):
            batches.append(self._queue.popleft())
            rows += len(batches[-1].rows)
        self._queued -= rows
        return batches
