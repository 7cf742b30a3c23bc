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
from mlops.attestations import require_approval
from mlops.environment import Environment
from mlops.errors import UserError
from mlops.model import Model
from mlops.registered_model import RegisteredModel
from mlops.sandbox import run_in_sandbox

_PART_ROWS = 20_000
_CHUNK_ROWS = 2_000
_MISSING = frozenset(["", "NA", "NaN", "null"])  # in a CSV, as training reads it


def score_file(
    environment: Environment, name: str, source: Path, folder: Path, digest: str | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """Score a CSV or Parquet file in constant memory, with the checks and the answers of the API.

    Writes `part-*.parquet` (row: position in the source, from 0; score; prediction) and `refused-*.jsonl` (row,
    reason). A part appears whole or not at all, so a run that was killed continues after its last part.
    """
    loaded = _load(environment.model(name), digest)
    if not source.is_file():
        raise UserError("source", str(source), "no such file")
    size, modified = source.stat().st_size, source.stat().st_mtime_ns
    job = {"source": str(source.absolute()), "bytes": size, "modified": modified, "digest": loaded.digest}
    totals = {"digest": loaded.digest, "scored": 0, "refused": 0, "parts": 0}
    with _job(folder, job):
        rows = enumerate(_rows(source, [*loaded.schema.names, *loaded.contract.context]))
        for number, part in groupby(rows, lambda row: row[0] // _PART_ROWS):
            scored, refused = folder / f"part-{number:05d}.parquet", folder / f"refused-{number:05d}.jsonl"
            if not scored.exists():
                # Everything in a CSV is a string, so there a string may be a number.
                _score_part(loaded, part, scored, refused, strict=source.suffix != ".csv")
            totals["scored"] += pa.parquet.read_metadata(scored).num_rows
            totals["refused"] += refused.read_bytes().count(b"\n") if refused.exists() else 0
            totals["parts"] += 1
            say(f"score: {totals['scored'] + totals['refused']} rows")
    return totals


def _load(model: RegisteredModel, digest: str | None) -> Model:
    if digest is None:
        current = model.releases.current()
        if current is None:
            raise UserError("digest", "", "nothing is released yet; name an approved bundle with --digest")
        digest = current.champion
    digest = bundles.find(model, digest)
    require_approval(model, digest)
    bundle = bundles.read(model, digest)
    run_in_sandbox(bundle, digest)
    return Model(bundle, digest)


@contextmanager
def _job(folder: Path, job: dict[str, Any]) -> Generator[None]:
    """The folder belongs to one job, and to one process at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    file, held = folder / "job.json", os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError("folder", str(folder), "another process is scoring into it") from None
        if file.exists() and json.loads(file.read_text()) != job:
            hint = f"has the scores of another job ({file}); use another folder or empty this one"
            raise UserError("folder", str(folder), hint)
        _write(file, json.dumps(job).encode())
        yield
    finally:
        os.close(held)


def _write(file: Path, content: bytes) -> None:
    temporary = file.with_suffix(".tmp")
    temporary.write_bytes(content)
    temporary.replace(file)


def _rows(source: Path, names: list[str]) -> Iterator[dict[str, Any] | str]:
    """The columns `names` of each row, as a request has them; for a broken row, why."""
    read = {".csv": _csv, ".parquet": _parquet, ".pq": _parquet}.get(source.suffix)
    if read is None:
        raise UserError("source", str(source), "is neither .csv nor .parquet")
    try:
        yield from read(source, names)
    except (pa.ArrowException, csv.Error, OSError) as error:
        raise UserError("source", str(source), f"cannot be read: {error}") from None


def _parquet(source: Path, names: list[str]) -> Iterator[dict[str, Any]]:
    # Buffered: otherwise whole columns of a row group are read at once.
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
            elif not (text := "".join(cells)).isascii() and any("\ud800" <= each <= "\udfff" for each in text):
                yield "is not UTF-8"
            else:
                yield {name: None if (cell := cells[position]) in _MISSING else cell for name, position in present}


def _score_part(
    model: Model, part: Iterator[tuple[int, dict[str, Any] | str]], scored: Path, refused: Path, strict: bool
) -> None:
    scores: dict[int, float] = {}
    reasons: dict[int, str] = {}
    while chunk := list(islice(part, _CHUNK_ROWS)):
        rows = {}
        for position, values in chunk:
            try:
                if isinstance(values, str):
                    raise msgspec.ValidationError(values)
                rows[position] = msgspec.convert(values, model.schema.Row, strict=strict)
            except msgspec.ValidationError as error:
                reasons[position] = str(error)
        for position, found in zip(rows, model.score(rows.values()) if rows else [], strict=True):
            if math.isfinite(found):
                scores[position] = found
            else:
                reasons[position] = "the model returned a non-finite score"
    if reasons:
        lines = [json.dumps({"row": position, "reason": reason}) + "\n" for position, reason in sorted(reasons.items())]
        _write(refused, "".join(lines).encode())
    predictions = model.contract.predictions(list(scores.values()))
    table = pa.table({
        "row": pa.array(scores, pa.int64()),
        "score": pa.array(scores.values(), pa.float32()),
        "prediction": pa.array(predictions, pa.float32()),
    })  # fmt: skip
    # Last: its presence says that the part is complete.
    temporary = scored.with_suffix(".tmp")
    pa.parquet.write_table(table, temporary)
    temporary.replace(scored)
