import fcntl
import json
import math
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from itertools import groupby, islice
from operator import itemgetter
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
from training.source import Table, open_table
from training.validation import typed

_PART_ROWS = 20_000
_CHUNK_ROWS = 2_000


def score_file(
    environment: Environment, name: str, source: Path, folder: Path, digest: str | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """Score a CSV or Parquet file in constant memory, with the checks and the answers of the API.

    Writes `part-*.parquet` (row: position in the source, from 0; score; prediction) and `refused-*.jsonl` (row,
    reason). A part appears whole or not at all, so a run that was killed continues after its last part.
    """
    loaded = _load(environment.model(name), digest)
    table = open_table(str(source))
    size, modified = source.stat().st_size, source.stat().st_mtime_ns
    job = {"source": str(source.absolute()), "bytes": size, "modified": modified, "digest": loaded.digest}
    totals = {"digest": loaded.digest, "scored": 0, "refused": 0, "reason": "", "parts": 0}
    with _job(folder, job):
        for number, part in groupby(_rows(table, loaded), lambda row: row[0] // _PART_ROWS):
            scored, refused = folder / f"part-{number:05d}.parquet", folder / f"refused-{number:05d}.jsonl"
            if not scored.exists():
                _score_part(loaded, part, scored, refused)
            totals["scored"] += pa.parquet.read_metadata(scored).num_rows
            if refused.exists():
                reasons = refused.read_bytes().splitlines()
                totals["refused"] += len(reasons)
                totals["reason"] = totals["reason"] or json.loads(reasons[0])["reason"]
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
    return Model(run_in_sandbox(bundles.read(model, digest), digest).bundle, digest)


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
        if file.exists() and json.loads(file.read_text("utf-8")) != job:
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


def _rows(table: Table, model: Model) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Each row's position with its values, as a request has them, or why it cannot be read."""
    names, told = [*model.schema.names, *model.contract.context], 0
    for positions, frame in table.parts:
        rows, faults = typed(frame.select(name for name in names if name in frame.columns), model.contract)
        values = rows.iter_rows(named=True) if rows.width else ({} for _ in positions)
        found: dict[int, dict[str, Any] | str] = dict(zip(positions.tolist(), values, strict=True))
        found |= {position: why for position, why in zip(positions.tolist(), faults, strict=False) if why}
        end = int(positions[-1]) + 1 if len(positions) else told
        found |= {position: why for position, why in table.broken.items() if told <= position < end}
        yield from sorted(found.items(), key=itemgetter(0))
        told = end
    yield from sorted((position, why) for position, why in table.broken.items() if position >= told)


def _score_part(model: Model, part: Iterator[tuple[int, dict[str, Any] | str]], scored: Path, refused: Path) -> None:
    scores: dict[int, float] = {}
    reasons: dict[int, str] = {}
    while chunk := list(islice(part, _CHUNK_ROWS)):
        rows = {}
        for position, values in chunk:
            try:
                if isinstance(values, str):
                    raise msgspec.ValidationError(values)
                rows[position] = model.schema.row(values)
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
