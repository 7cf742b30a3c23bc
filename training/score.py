from __future__ import annotations

import csv
import fcntl
import json
import math
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet

from mlops import bundle as bundles
from mlops import releases
from mlops.environment import Environment
from mlops.errors import Fault
from mlops.model import Model
from mlops.probe import probe
from mlops.statements import require_approval

_PART_ROWS = 20_000
_CHUNK_ROWS = 2_000
_MISSING = frozenset(["", "NA", "NaN", "null"])  # in a CSV, as training reads it


def score(
    environment: Environment, model: str, source: Path, folder: Path, digest: str | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """Score a CSV or Parquet file in constant memory, with the checks and the answers of the API.

    Writes `part-*.parquet` (row: position in the source, from 0; score; prediction) and `refused-*.jsonl` (row,
    reason). A part appears whole or not at all, so a run that was killed goes on after its last part.
    """
    store = environment.store
    if digest is None:
        current = releases.serving(releases.read(store, model), releases.now())
        if current is None:
            raise Fault("digest", "", "nothing is released yet; name an approved bundle with --digest")
        digest = current.champion
    digest = bundles.find(store, model, digest)
    require_approval(store, environment.keys, model, digest, environment.name)
    bundle = bundles.read(store, model, digest)
    probe(bundle, digest)
    loaded = Model(bundle, digest)
    totals = {"digest": digest, "scored": 0, "refused": 0, "parts": 0}
    with _job(folder, {"source": str(source.absolute()), "bytes": _size(source), "modified": source.stat().st_mtime_ns, "digest": digest}):
        rows = enumerate(_rows(source, [*loaded.schema.names, *loaded.contract.context]))
        for number, part in groupby(rows, lambda row: row[0] // _PART_ROWS):
            counts = folder / f"part-{number:05d}.json"
            if not counts.exists():
                # In a CSV everything is a string, so there a number may be one.
                _score_part(loaded, part, number, folder, counts, strict=source.suffix != ".csv")
            found = json.loads(counts.read_text())
            totals["scored"] += found["scored"]
            totals["refused"] += found["refused"]
            totals["parts"] += 1
            say(f"score: {totals['scored'] + totals['refused']} rows")
    return totals


def _size(source: Path) -> int:
    if not source.is_file():
        raise Fault("source", str(source), "no such file")
    return source.stat().st_size


@contextmanager
def _job(folder: Path, job: dict[str, Any]) -> Generator[None]:
    """The folder belongs to one job, and to one process at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    file, held = folder / "job.json", os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Fault("folder", str(folder), "another process is scoring into it") from None
        if file.exists() and json.loads(file.read_text()) != job:
            raise Fault("folder", str(folder), f"holds the scores of another job ({file}); name another folder or empty this one")
        _write(file, json.dumps(job).encode())
        yield
    finally:
        os.close(held)


def _write(file: Path, content: bytes) -> None:
    temporary = file.with_suffix(".tmp")
    temporary.write_bytes(content)
    temporary.replace(file)


def _rows(source: Path, names: list[str]) -> Iterator[dict[str, Any] | str]:
    """The columns `names` of each row, as a request has them; what is no row at all: why."""
    read = {".csv": _csv, ".parquet": _parquet, ".pq": _parquet}.get(source.suffix)
    if read is None:
        raise Fault("source", str(source), "is neither .csv nor .parquet")
    try:
        yield from read(source, names)
    except (pa.ArrowException, csv.Error, OSError) as error:
        raise Fault("source", str(source), f"cannot be read: {error}") from None


def _parquet(source: Path, names: list[str]) -> Iterator[dict[str, Any]]:
    # Buffered: otherwise a whole column of a row group is read at once, however large.
    file = pa.parquet.ParquetFile(source, buffer_size=1 << 20)
    present = [name for name in names if name in file.schema_arrow.names]
    for batch in file.iter_batches(batch_size=10_000, columns=present):
        for values in zip(*map(_values, batch.select(present).columns), strict=True):
            yield dict(zip(present, values, strict=True))


def _values(column: pa.Array) -> list[Any]:
    if pa.types.is_floating(column.type):
        column = pa.array(column.to_numpy(zero_copy_only=False), from_pandas=True)  # NaN is missing
    return column.to_pylist()


def _csv(source: Path, names: list[str]) -> Iterator[dict[str, Any] | str]:
    with source.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        lines = csv.reader(file)
        header = next(lines, [])
        present = [(name, header.index(name)) for name in names if name in header]
        for cells in filter(None, lines):
            if len(cells) != len(header):
                yield f"has {len(cells)} cells, the header has {len(header)}"
            elif not (text := "".join(cells)).isascii() and any("\ud800" <= character <= "\udfff" for character in text):
                yield "is not UTF-8"
            else:
                yield {name: None if (cell := cells[position]) in _MISSING else cell for name, position in present}


def _score_part(
    model: Model, part: Iterator[tuple[int, dict[str, Any] | str]], number: int, folder: Path, counts: Path, strict: bool
) -> None:
    scores: dict[int, float] = {}
    refused: dict[int, str] = {}
    while chunk := list(islice(part, _CHUNK_ROWS)):
        rows = {}
        for position, values in chunk:
            try:
                if isinstance(values, str):
                    raise msgspec.ValidationError(values)
                rows[position] = msgspec.convert(values, model.schema.Row, strict=strict)
            except msgspec.ValidationError as error:
                refused[position] = str(error)
        for position, found in zip(rows, model.score(rows.values()) if rows else [], strict=True):
            if math.isfinite(found):
                scores[position] = found
            else:
                refused[position] = "the model returned no number for a row"
    table = pa.table(
        {
            "row": pa.array(scores, pa.int64()),
            "score": pa.array(scores.values(), pa.float32()),
            "prediction": pa.array(model.contract.predictions(list(scores.values())), pa.float32()),
        }
    )
    temporary = folder / f"part-{number:05d}.tmp"
    pa.parquet.write_table(table, temporary)
    temporary.replace(folder / f"part-{number:05d}.parquet")
    if refused:
        lines = [json.dumps({"row": position, "reason": reason}).encode() + b"\n" for position, reason in sorted(refused.items())]
        _write(folder / f"refused-{number:05d}.jsonl", b"".join(lines))
    # Last, for it says that the part is whole.
    _write(counts, json.dumps({"scored": len(scores), "refused": len(refused)}).encode())
