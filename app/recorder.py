from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import msgspec

from app.bins import Bins
from app.challenger import Scores
from app.metrics import Metrics
from app.settings import Settings
from app.watcher import Live
from mlops import records
from mlops.errors import Fault
from mlops.store import Store

log = logging.getLogger("app.recorder")
_QUEUED_ROWS = 200_000
_WRITE_SECONDS = 0.05  # often: while it makes lines of the rows of a while, requests wait for the interpreter
_DRAIN_SECONDS = 10.0
_FIRST_SEGMENT_SECONDS = 1.0  # a rollback asks the log who served: a new release shows there at once


class Batch(msgspec.Struct, frozen=True):
    """Rows of one request that one model was to answer; `scores` are the champion's, `trial` what the challenger made of them."""

    live: Live
    at: float
    ids: Sequence[str]
    rows: Sequence[Any]
    scores: list[float]
    key: str | None = None  # what the caller wants to be known by, where the contract names no entity
    arm: int | None = None  # 1: the challenger's, 0: the champion's, where there are two
    waited: bool = False  # the caller did, for the challenger
    trial: Scores | None = None

    @property
    def answered(self) -> tuple[str, list[float], list[float]]:
        """Digest, scores and predictions that the caller got."""
        challenger = self.live.challenger
        if self.waited and challenger and self.trial and self.trial.scores:
            return challenger.digest, self.trial.scores, challenger.contract.predictions(self.trial.scores)
        return self.live.model.digest, self.scores, self.live.model.contract.predictions(self.scores)


class _Segment:
    def __init__(self, spool: Path, key: str):
        self.path = spool / f"{quote(key, safe='')}.open"
        self.file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (lives until the segment closes)
        self.opened, self.bytes = time.monotonic(), 0

    def close(self) -> None:
        self.file.close()
        self.path.rename(self.path.with_suffix(".log"))


class Recorder:
    """The prediction log: a bounded queue, a thread that writes it to checksummed local segments, one that uploads them.

    A request only appends to the queue. What does not fit (queue, spool or disk full) is dropped and counted.
    """

    def __init__(self, settings: Settings, store: Store, metrics: Metrics, bins: Bins):
        self._settings, self._store, self._metrics, self._bins = settings, store, metrics, bins
        self._spool = settings.spool
        self._spool.mkdir(parents=True, exist_ok=True)
        self._lock = open(self._spool / "lock", "w")  # noqa: SIM115 (held for life)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Fault("MLOPS_SPOOL", str(self._spool), "another replica writes there; give each its own folder") from None
        self._queue: deque[Batch | records.Outcome] = deque()
        self._queued = 0
        self._open: dict[tuple[str, int, int], _Segment] = {}
        self._seen: set[tuple[str, int, int]] = set()
        for orphan in self._spool.glob("*.open"):  # of a predecessor that was killed
            orphan.rename(orphan.with_suffix(".log"))
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._write_loop, name="recorder", daemon=True),
            threading.Thread(target=self._upload_loop, name="uploader", daemon=True),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Write and upload what is left, within a deadline; the rest stays in the spool for the successor."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=_DRAIN_SECONDS)
        self._lock.close()

    def add(self, item: Batch | records.Outcome) -> None:
        rows = len(item.ids) if isinstance(item, Batch) else 1
        if self._queued + rows > _QUEUED_ROWS:
            self._metrics.log_dropped.labels("queue").inc(rows)
            return
        self._queued += rows
        self._queue.append(item)

    def _write_loop(self) -> None:
        while not self._stop.wait(_WRITE_SECONDS):
            try:
                self._write()
            except Exception:  # these rows are lost, not all that follow
                log.exception("write")
        self._write(close=True)

    def _write(self, close: bool = False) -> None:
        items = [self._queue.popleft() for _ in range(len(self._queue))]
        self._queued = sum(len(i.ids) if isinstance(i, Batch) else 1 for i in list(self._queue))
        lines: dict[tuple[str, int, int], list[bytes]] = {}
        for item in items:
            if isinstance(item, Batch):
                where = ("predictions", int(item.at // 3600), item.live.release.epoch)
                lines.setdefault(where, []).extend(map(records.line, _scored(item)))
            else:
                lines.setdefault(("outcomes", int(item.at // 3600), 0), []).append(records.line(item))
        for where, batch in lines.items():
            self._append(where, batch)
        self._count_bins([item for item in items if isinstance(item, Batch)])
        for where, segment in list(self._open.items()):
            life = self._settings.segment_seconds if where in self._seen else _FIRST_SEGMENT_SECONDS
            old = time.monotonic() - segment.opened > life
            if close or old or segment.bytes > self._settings.segment_bytes or where[1] != int(time.time() // 3600):
                self._seen.add(where)
                del self._open[where]
                segment.close()

    def _append(self, where: tuple[str, int, int], lines: list[bytes]) -> None:
        kind, hour, epoch = where
        data = b"".join(lines)
        waiting = self._waiting()
        self._metrics.spool_bytes.set(waiting)
        if waiting + len(data) > self._settings.spool_bytes:
            self._metrics.log_dropped.labels("spool").inc(len(lines))
            return
        try:
            if where not in self._open:
                key = records.segment_key(kind, self._settings.model, hour * 3600.0, epoch, secrets.token_hex(8))
                self._open[where] = _Segment(self._spool, key)
            written = self._open[where].file.write(data) or 0
            self._open[where].bytes += written
            whole = data.count(b"\n", 0, written)
            self._metrics.logged.labels(kind).inc(whole)
            if whole < len(lines):
                lines = lines[whole:]
                raise OSError("short write: no space left")
        except OSError as error:
            self._metrics.log_dropped.labels("disk").inc(len(lines))
            log.error("%s", json.dumps({"event": "log", "error": str(error)}))
            if broken := self._open.pop(where, None):  # what follows a torn line goes to a new segment
                broken.close()

    def _waiting(self) -> int:
        """Bytes that are not uploaded yet; segments vanish meanwhile."""
        total = 0
        for path in self._spool.glob("*.log"):
            with contextlib.suppress(FileNotFoundError):
                total += path.stat().st_size
        return total

    def _count_bins(self, batches: list[Batch]) -> None:
        by_model: dict[int, list[Batch]] = {}
        for batch in batches:
            by_model.setdefault(id(batch.live.model), []).append(batch)
        for group in by_model.values():
            rows = [msgspec.structs.astuple(row) for batch in group for row in batch.rows]
            self._bins.observe(group[0].live.model, rows, [score for batch in group for score in batch.scores])

    def _upload_loop(self) -> None:
        wait = 0.5
        while not self._stop.wait(wait):
            wait = 0.5 if self._upload() else min(wait * 2, 15.0)
        self._threads[0].join(timeout=_DRAIN_SECONDS)
        self._upload()

    def _upload(self) -> bool:
        for path in sorted(self._spool.glob("*.log")):
            try:
                self._store.put(unquote(path.stem), path)
                path.unlink()
                self._metrics.log_uploaded.inc()
            except Exception as error:  # the bucket is away: the segment waits
                self._metrics.bucket_errors.labels("log").inc()
                log.warning("%s", json.dumps({"event": "upload", "error": str(error)[:300]}))
                return False
        return True


def _scored(batch: Batch) -> Iterator[records.Scored]:
    contract, release = batch.live.model.contract, batch.live.release
    model, scores, predictions = batch.answered
    trial = batch.trial
    others = trial.scores if trial and trial.scores else [None] * len(batch.rows)
    for position, row in enumerate(batch.rows):
        values = msgspec.structs.asdict(row)
        kept = {name: values[name] for name in contract.logged["keep"] if values[name] is not None}
        for name in contract.logged["hash"]:
            kept[name] = hashlib.sha256(str(values[name]).encode()).hexdigest()[:16]
        yield records.Scored(
            id=batch.ids[position], at=batch.at, epoch=release.epoch, model=model,
            score=scores[position], prediction=predictions[position], features=kept,
            entity=contract.entity_of(row) or batch.key, event=contract.event_of(row), arm=batch.arm,
            champion_score=batch.scores[position] if trial else None, challenger_score=others[position],
            challenger_seconds=trial.seconds if trial else None, fault=trial.fault if trial else None,
        )  # fmt: skip
