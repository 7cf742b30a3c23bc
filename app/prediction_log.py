import asyncio
import contextlib
import fcntl
import hashlib
import logging
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import msgspec

from app.batch import Batch, Result
from app.bins import Bins
from app.metrics import Metrics
from app.settings import Settings
from mlops import log_schema
from mlops.errors import UserError
from mlops.log_schema import OutcomeRecord, PredictionRecord
from mlops.registered_model import RegisteredModel

log = logging.getLogger("app.prediction_log")
_QUEUED_ROWS = 200_000
_MANY_ROWS = 10_000  # a large request waits until there are fewer
_ROWS_AT_ONCE = 1000  # what takes long in one call holds the interpreter
_WRITE_SECONDS = 0.05  # often: encoding many rows at once keeps requests from the interpreter
_DRAIN_SECONDS = 10.0
_FIRST_SEGMENT_SECONDS = 1.0  # a rollback asks the log which models answered: a new release shows there at once


class _Place(NamedTuple):
    """Where a record belongs; `hour` in hours since 1970."""

    kind: str
    hour: int
    revision: int


class _Segment:
    """A file of the spool named by its key in the bucket, `KEY.open`; `KEY.log` once it is whole, with its SHA-256."""

    def __init__(self, spool: Path, place: _Place, model: str):
        key = log_schema.segment_key(place.kind, model, place.hour * 3600.0, place.revision, secrets.token_hex(8))
        self.path = spool / f"{quote(key, safe='')}.open"
        self.file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (lives until the segment closes)
        self.opened, self.bytes = time.monotonic(), 0

    def close(self) -> None:
        self.file.close()
        _finish(self.path)


def _finish(path: Path) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    path.rename(path.with_name(f"{path.stem.rpartition('-')[0]}-{digest}.log.log"))


def _vital(run: Callable[[], None]) -> Callable[[], None]:
    """A replica that logs nothing must not go on answering: it ends, and its successor adopts the spool."""

    def running() -> None:
        try:
            run()
        except BaseException:  # a panic is no Exception
            log.critical("the prediction log has ended, and this process with it", exc_info=True)
            os._exit(1)

    return running


class PredictionLog:
    """A bounded queue, a thread that writes it to checksummed local segments, and one that uploads them.

    A request only appends to the queue. What does not fit (queue, spool or disk full) is dropped and counted.
    """

    def __init__(self, settings: Settings, model: RegisteredModel, metrics: Metrics, bins: Bins):
        self._settings, self._store, self._metrics, self._bins = settings, model.store, metrics, bins
        self._hashed = model.log_key.hashed
        self._spool = settings.spool
        self._spool.mkdir(parents=True, exist_ok=True)
        self._lock = open(self._spool / "lock", "w", encoding="utf-8")  # noqa: SIM115 (held for life)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            hint = "another replica writes there; give each its own folder"
            raise UserError("MLOPS_SPOOL", str(self._spool), hint) from None
        self._queue: deque[Batch | OutcomeRecord] = deque()
        self._queued = 0  # rows that are not written yet
        self._open: dict[_Place, _Segment] = {}
        self._seen: set[_Place] = set()
        for orphan in self._spool.glob("*.open"):  # of a predecessor that was killed
            _finish(orphan)
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=_vital(self._write_loop), name="log-writer", daemon=True),
            threading.Thread(target=_vital(self._upload_loop), name="log-uploader", daemon=True),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Write and upload the rest, within a deadline; what is left stays in the spool for the successor."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=_DRAIN_SECONDS)
        self._lock.close()

    def add(self, item: Batch | OutcomeRecord) -> None:
        rows = _rows(item)
        if self._queued + rows > _QUEUED_ROWS:
            self._metrics.log_dropped.labels("queue").inc(rows)
            return
        self._queued += rows
        self._queue.append(item)

    async def room(self) -> None:
        """Returns once there is room for a large request, or it is clear that there will be none soon."""
        deadline = time.monotonic() + _DRAIN_SECONDS
        while self._queued > _MANY_ROWS and time.monotonic() < deadline:
            await asyncio.sleep(_WRITE_SECONDS)

    def _write_loop(self) -> None:
        while not self._stop.wait(_WRITE_SECONDS):
            try:
                self._write()
            except Exception:  # of segments; rows are lost one by one, and counted
                log.exception("write failed")
            self._queued = sum(map(_rows, list(self._queue)))
        self._write(close=True)

    def _write(self, close: bool = False) -> None:
        items = [self._queue.popleft() for _ in range(len(self._queue))]
        lines: dict[_Place, list[bytes]] = {}
        for item in items:
            kind, revision = ("predictions", item.live.release.revision) if isinstance(item, Batch) else ("outcomes", 0)
            place = _Place(kind, int(item.at // 3600), revision)
            made = item.lines if isinstance(item, Batch) else None
            lines.setdefault(place, []).extend(self.lines(item) if made is None else made)
        for place, batch in lines.items():
            for start in range(0, len(batch), _ROWS_AT_ONCE):
                self._append(place, batch[start : start + _ROWS_AT_ONCE])
        self._count_bins([item for item in items if isinstance(item, Batch) and len(item.scores) == len(item.rows)])
        for place, segment in list(self._open.items()):
            life = self._settings.segment_seconds if place in self._seen else _FIRST_SEGMENT_SECONDS
            old = time.monotonic() - segment.opened > life or place.hour != int(time.time() // 3600)
            if close or old or segment.bytes > self._settings.segment_bytes:
                self._seen.add(place)
                del self._open[place]
                segment.close()

    def lines(self, item: Batch | OutcomeRecord) -> Iterator[bytes]:
        """What cannot be written is lost alone, and counted: a row, or all of one request."""
        try:
            answered = item.answered() if isinstance(item, Batch) else ([], [], [])
        except Exception:
            self._metrics.log_dropped.labels("error").inc(_rows(item))
            log.exception("a request cannot be written")
            return
        for position in range(_rows(item)):
            try:
                line = log_schema.line(
                    _record(item, position, self._hashed, *answered) if isinstance(item, Batch) else item
                )
            except Exception:
                self._metrics.log_dropped.labels("error").inc()
                log.exception("a row cannot be written")
                continue
            yield line

    def _append(self, place: _Place, lines: list[bytes]) -> None:
        data = b"".join(lines)
        waiting = self._waiting()
        self._metrics.spool_bytes.set(waiting)
        if waiting + len(data) > self._settings.spool_bytes:
            self._metrics.log_dropped.labels("spool").inc(len(lines))
            return
        try:
            if place not in self._open:
                self._open[place] = _Segment(self._spool, place, self._settings.model)
            written = self._open[place].file.write(data) or 0
            self._open[place].bytes += written
            whole = data.count(b"\n", 0, written)
            self._metrics.logged.labels(place.kind).inc(whole)
            if whole < len(lines):
                lines = lines[whole:]
                raise OSError("short write: no space left")
        except OSError as error:
            self._metrics.log_dropped.labels("disk").inc(len(lines))
            log.error("cannot write to the spool", extra={"error": str(error)})
            if broken := self._open.pop(place, None):  # what follows a torn line goes to a new segment
                broken.close()

    def _waiting(self) -> int:
        """Bytes that are not uploaded yet; segments may vanish while they are counted."""
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
            scores = [score for batch in group for score in batch.scores]
            for start in range(0, len(rows), _ROWS_AT_ONCE):
                end = start + _ROWS_AT_ONCE
                self._bins.observe(group[0].live.model, rows[start:end], scores[start:end])

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
            except Exception as error:  # the bucket is unreachable: the segment waits
                self._metrics.bucket_errors.labels("log").inc()
                log.warning("upload failed", extra={"error": str(error)[:300]})
                return False
        return True


def _rows(item: Batch | OutcomeRecord) -> int:
    return len(item.ids) if isinstance(item, Batch) else 1


def _record(
    batch: Batch, position: int, hashed: Callable[[str, Any], str],
    versions: list[str], scores: list[float], predictions: list[float],
) -> PredictionRecord:  # fmt: skip
    contract, row = batch.live.model.contract, batch.rows[position]
    values = msgspec.structs.asdict(row)
    kept = {name: values[name] for name in contract.logged["keep"] if values[name] is not None}
    kept |= {name: hashed(name, values[name]) for name in contract.logged["hash"] if values[name] is not None}
    result = batch.results[position] if batch.results else None
    score, seconds, fault = result or Result(None, None, None)
    return PredictionRecord(
        id=batch.ids[position], at=batch.at, revision=batch.live.release.revision, model_version=versions[position],
        score=scores[position], prediction=predictions[position], features=kept,
        entity=contract.entity_of(row) or batch.key, event=contract.event_of(row),
        arm=batch.arms[position] if batch.arms else None,
        champion_score=batch.scores[position] if result else None, challenger_score=score,
        challenger_seconds=seconds, fault=fault, caller=batch.caller,
    )  # fmt: skip
