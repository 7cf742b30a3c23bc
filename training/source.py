"""Tables from files, buckets and databases. Whoever reads a file (init, train, score) reads it here, with the same names
and the same values."""

import csv
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import obstore.store
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from obstore.exceptions import BaseError

from mlops import snapshot
from mlops.contract import RESERVED
from mlops.errors import UserError
from mlops.store import Store

_FILE = re.compile(r"\.(csv|tsv|parquet|pq)(?:\.(gz|zst|bz2))?$", re.IGNORECASE)
_CODECS = {"gz": "gzip", "zst": "zstd", "bz2": "bz2"}
_MISSING = ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "?"]
_SEPARATORS = (",", ";", "\t", "|")
_DECIMAL_COMMA = r"^\s*([+-]?\d+),(\d+)\s*$"
_BLOCK_BYTES = 4 << 20
_LONGEST = 63
_CONVERT = "convert the file (iconv -f LATIN1 -t UTF-8)"
_FAULTS = (pa.ArrowException, pl.exceptions.PolarsError, BaseError, OSError, ValueError, UnicodeError)


@dataclass
class Table:
    """`parts`: the positions of some rows (from 0) and their frame, one part after the other, so that memory is constant.
    `broken`: by position, why a row could not be read; filled as the parts are."""

    parts: Iterator[tuple[np.ndarray, pl.DataFrame]]
    broken: dict[int, str] = field(default_factory=dict)


def read(uri: str, query: str | None = None) -> pl.DataFrame:
    """A table from a CSV or Parquet file (a path, http(s):// or s3://), or from a database (a SQLAlchemy URI with `query`).

    Columns are named in snake_case. Those of a CSV are text: the contract gives them their types. `${NAME}` in the URI is
    taken from the environment, so that passwords stay in secrets.
    """
    if query is not None:
        frame = _query(uri, query)
        return frame.rename(dict(zip(frame.columns, column_names(frame.columns), strict=True)))
    table = open_table(uri)
    rows = pl.concat([frame for _, frame in table.parts])
    for position, why in table.broken.items():
        raise UserError("data", uri, f"row {position + 1} {why}")
    return rows


def open_table(uri: str) -> Table:
    """Raises UserError, also while its parts are read."""
    resolved = _resolved(uri)
    remote = "://" in resolved
    if not (kind := _FILE.search(resolved.partition("?")[0] if remote else resolved)):
        raise UserError("data", uri, "is neither .csv, .tsv nor .parquet; for a database give a query as well")
    if not remote and not Path(resolved).is_file():
        raise UserError("data", uri, "no such file")
    codec, table = _CODECS.get((kind[2] or "").lower()), Table(iter(()))

    def parts() -> Iterator[tuple[np.ndarray, pl.DataFrame]]:
        try:
            source = pa.py_buffer(_download(resolved)) if remote else resolved
            if kind[1].lower() in ("csv", "tsv"):
                yield from _csv(source, codec, table.broken)
            else:
                yield from _parquet(source)
        except _FAULTS as error:
            raise UserError("data", uri, f"cannot be read: {str(error).splitlines()[0][:300]}") from None

    table.parts = parts()
    return table


def _download(uri: str) -> bytes:
    folder, _, name = uri.rpartition("/")
    return bytes(obstore.get(obstore.store.from_url(folder), name).bytes())


def _parquet(source: Any) -> Iterator[tuple[np.ndarray, pl.DataFrame]]:
    # Buffered: otherwise whole columns of a row group are read at once.
    file, start = pa.parquet.ParquetFile(source, buffer_size=1 << 20), 0
    names = column_names(file.schema_arrow.names)
    for batch in chain([file.schema_arrow.empty_table()], file.iter_batches(batch_size=10_000)):
        frame = pl.DataFrame(batch.rename_columns(names))
        yield np.arange(start, start := start + frame.height), frame


def _csv(source: Any, codec: str | None, broken: dict[int, str]) -> Iterator[tuple[np.ndarray, pl.DataFrame]]:
    with pa.input_stream(source, compression=codec) as stream:
        head = stream.read(_BLOCK_BYTES)
    encoding = "utf-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8"
    header, skipped, separator = _header(head.decode(encoding, errors="replace").removeprefix("\ufeff"))
    keys, found = [str(number) for number in range(len(header))], set[int]()

    def refuse(row: pa.csv.InvalidRow) -> str:
        position = row.number - skipped - 1
        found.add(position)
        broken[position] = f"has {row.actual_columns} cells, the header has {row.expected_columns}"
        return "skip"

    read_options = {"use_threads": False, "column_names": keys, "skip_rows": skipped, "block_size": _BLOCK_BYTES}
    batches = pa.csv.open_csv(
        pa.input_stream(source, compression=codec),
        pa.csv.ReadOptions(encoding=encoding, **read_options),
        pa.csv.ParseOptions(delimiter=separator, newlines_in_values=True, invalid_row_handler=refuse),
        pa.csv.ConvertOptions(
            column_types=dict.fromkeys(keys, pa.binary()), null_values=_MISSING,
            strings_can_be_null=True, check_utf8=False,
        ),
    )  # fmt: skip
    names, start = column_names(header), 0
    yield np.arange(0), pl.DataFrame(schema=dict.fromkeys(names, pl.String))
    for batch in batches:
        positions = np.arange(start, start + batch.num_rows + len(found))
        positions = np.setdiff1d(positions, list(found))[: batch.num_rows]
        columns = [_text(column, positions, broken) for column in batch.columns]
        frame = pl.DataFrame(dict(zip(names, columns, strict=True)), schema=dict.fromkeys(names, pl.String))
        if separator == ";":  # there a comma is the decimal point
            frame = frame.with_columns(pl.all().str.replace(_DECIMAL_COMMA, "$1.$2"))
        start = int(positions[-1]) + 1 if len(positions) else start
        yield positions, frame


def _header(text: str) -> tuple[list[str], int, str]:
    """The header's cells, the lines up to its end, and the separator: the one that gives the most cells."""
    best: tuple[list[str], int, str] = ([], 0, ",")
    for separator in _SEPARATORS:
        lines = csv.reader(text.splitlines(), delimiter=separator)
        header = next(filter(None, lines), [])
        if len(header) > len(best[0]):
            best = header, lines.line_num, separator
    if not best[0]:
        raise ValueError("it is empty")
    if any("\ufffd" in name for name in best[0]):
        raise ValueError(f"its header is not UTF-8; {_CONVERT}")
    return best


def _text(column: pa.Array, positions: np.ndarray, broken: dict[int, str]) -> list[str | None] | pl.Series:
    try:
        return pl.Series(pl.from_arrow(column.cast(pa.string())))
    except pa.ArrowInvalid:
        cells = column.to_pylist()
    for place, cell in enumerate(cells):
        try:
            cells[place] = cell.decode() if cell is not None else None
        except UnicodeDecodeError:
            broken[int(positions[place])] = f"is not UTF-8: {cell[:40]!r}; {_CONVERT}"
            cells[place] = None
    return cells


def column_names(header: Sequence[str]) -> list[str]:
    """In snake_case, as a contract can have them; one that comes again gets a number."""
    names: list[str] = []
    for position, text in enumerate(header, 1):
        name = wanted = snake_case(text) or f"column_{position}"
        number = 1
        while name in names:
            number += 1
            name = f"{wanted[: _LONGEST - 4]}_{number}"
        names.append(name)
    return names


def snake_case(text: str) -> str:
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", unicodedata.normalize("NFKC", text)).lower()
    text = "".join(each if f"a{each}".isidentifier() else "_" for each in unicodedata.normalize("NFKC", text))
    name = re.sub("_+", "_", text).strip("_")
    name = name if not name or name.isidentifier() else f"c_{name}"
    return f"{name}_value" if name in RESERVED else name[:_LONGEST].rstrip("_")


def _query(uri: str, query: str) -> pl.DataFrame:
    import sqlalchemy
    from sqlalchemy.exc import SQLAlchemyError

    url = re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", _resolved(uri))
    try:
        engine = sqlalchemy.create_engine(url)
        with engine.connect() as connection:
            return pl.read_database(query, connection, infer_schema_length=None)
    except SQLAlchemyError as error:
        raise UserError("data", uri, f"the query failed: {str(error).splitlines()[0]}") from None


def to_parquet(frame: pl.DataFrame) -> bytes:
    content = BytesIO()
    frame.write_parquet(content, compression="zstd")
    return content.getvalue()


def put_snapshot(store: Store, model: str, content: bytes) -> str:
    """`content`: Parquet. Returns its key."""
    try:
        pl.read_parquet_schema(BytesIO(content))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError("snapshot", model, f"is not Parquet: {str(error).splitlines()[0]}") from None
    snapshot.put(store, model, content)
    return snapshot.key(model)


def read_snapshot(store: Store, model: str) -> pl.DataFrame:
    """Raises UserError if there is none, or it is damaged."""
    content = snapshot.get(store, model)
    if content is None:
        raise UserError(
            "snapshot", snapshot.key(model), "is not in the bucket; put it there: mlops --env ENVIRONMENT snapshot"
        )
    return pl.read_parquet(BytesIO(content))


def _resolved(uri: str) -> str:
    return re.sub(r"\$\{(\w+)\}", _secret, uri)


def _secret(match: re.Match[str]) -> str:
    if (name := match.group(1)) not in os.environ:
        raise UserError("data", match.group(), f"set {name} in the environment (a secret, not a file in git)")
    return os.environ[name]
