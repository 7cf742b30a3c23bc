import asyncio
from collections import deque
from collections.abc import Sequence
from itertools import groupby

from app.batch import Batch, Scores
from app.challenger import Challenger
from app.metrics import Metrics
from app.prediction_log import PredictionLog

_QUEUED_ROWS = 20_000
_ROWS_AT_ONCE = 64  # a caller assigned to the challenger waits for no more than these, or one request
_GATHER_SECONDS = 0.05  # no caller waits for a shadow's score, and one wake-up for many requests costs callers less


class Shadow:
    """Has the challenger score rows that the champion has answered, off the request path; then the batch is logged.

    It runs in the event loop: with a thread of its own, requests would wait for the interpreter. Its queue is bounded:
    what does not fit is logged without the challenger's score, and counted.
    """

    def __init__(self, log: PredictionLog, metrics: Metrics):
        self._log, self._metrics = log, metrics
        self._queue: deque[tuple[Batch, list[int]]] = deque()
        self._queued = 0  # rows in memory, those of a batch that are answered already too
        self._challenger: Challenger | None = None  # the last one asked
        self._going = True

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        self._going = False
        await asyncio.wait([self._task], timeout=5)

    def add(self, batch: Batch) -> None:
        pending = batch.pending()
        if self._queued + len(batch.rows) > _QUEUED_ROWS:
            self.record(batch, pending, Scores(fault="dropped"))
            return
        self._queue.append((batch, pending))
        self._queued += len(batch.rows)

    def record(self, batch: Batch, positions: Sequence[int], scored: Scores) -> None:
        """Take the challenger's result; log the batch once it is complete."""
        batch.take(positions, scored)
        self._metrics.challenger_rows.labels(scored.fault or "scored").inc(len(positions))
        if scored.seconds is not None:
            self._metrics.challenger_seconds.observe(scored.seconds)
        self._challenger = batch.live.challenger
        if not batch.pending():
            self._log.add(batch)

    async def _run(self) -> None:
        while self._going or self._queue:
            await asyncio.sleep(_GATHER_SECONDS)
            while queued := self._next():
                for challenger, group in groupby(queued, key=lambda item: item[0].live.challenger):
                    assert challenger
                    await self._score(challenger, list(group))
            if self._challenger and self._challenger.down():
                await asyncio.to_thread(self._challenger.revive)

    async def _score(self, challenger: Challenger, queued: list[tuple[Batch, list[int]]]) -> None:
        requests = [[batch.rows[position] for position in pending] for batch, pending in queued]
        seconds = 1 + sum(challenger.budget(len(rows)) for rows in requests)
        for (batch, pending), scored in zip(queued, await challenger.score(requests, seconds), strict=True):
            self.record(batch, pending, scored)

    def _next(self) -> list[tuple[Batch, list[int]]]:
        taken, rows = [], 0
        while self._queue and (not taken or rows + len(self._queue[0][1]) <= _ROWS_AT_ONCE):
            taken.append(self._queue.popleft())
            rows += len(taken[-1][1])
            self._queued -= len(taken[-1][0].rows)
        return taken
