from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from io import BytesIO
from itertools import groupby
from typing import Any

import msgspec
import polars as pl

from mlops import records
from mlops.store import Store

_GRACE = timedelta(minutes=5)  # a segment of the hour before may be on its way
_AT_ONCE = 200  # segments: what is in memory at a time
KINDS: dict[str, type[records.Scored] | type[records.Outcome]] = {"predictions": records.Scored, "outcomes": records.Outcome}


def waiting(store: Store, kind: str, model: str, now: datetime | None = None) -> list[str]:
    """Segments of closed hours, as they were uploaded."""
    closed = (now or datetime.now(UTC)) - _GRACE
    newest = f"{kind}/{model}/{closed:%Y-%m-%d/%H}"
    return [key for key in store.keys(f"{kind}/{model}") if key.endswith(".log") and key.rsplit("/", 1)[0] < newest]


def compact(store: Store, kind: str, model: str, now: datetime | None = None) -> int:
    """Segments of closed hours become Parquet; returns the rows written.

    The Parquet is there before its segments go: killed in between, or done twice, rows are there twice, and every reader
    takes each once.
    """
    written = 0
    for (folder, epoch), group in groupby(waiting(store, kind, model, now), key=_hour_and_epoch):
        for keys in _parts(list(group)):
            table = _table(store, keys, KINDS[kind])
            name = hashlib.sha256("".join(keys).encode()).hexdigest()[:16]
            content = BytesIO()
            table.write_parquet(content, compression="zstd", statistics=True)
            store.put(f"{folder}/{epoch}-{name}.parquet", content.getvalue())
            for key in keys:
                store.delete(key)
            written += table.height
    return written


def _hour_and_epoch(key: str) -> tuple[str, str]:
    folder, _, name = key.rpartition("/")
    return folder, name.partition("-")[0]


def _parts(keys: list[str]) -> Iterator[list[str]]:
    yield from (keys[start : start + _AT_ONCE] for start in range(0, len(keys), _AT_ONCE))


def _table(store: Store, keys: list[str], kind: type[records.Scored] | type[records.Outcome]) -> pl.DataFrame:
    decode = msgspec.json.Decoder(kind).decode
    rows: list[Any] = [decode(raw) for key in keys for raw in records.lines(store.get(key) or b"")]
    fields = [field for field in kind.__struct_fields__ if field != "features"]
    columns = {field: [getattr(row, field) for row in rows] for field in fields}
    if kind is records.Scored:
        names = sorted({name for row in rows for name in row.features})
        columns |= {f"feature.{name}": [row.features.get(name) for row in rows] for name in names}
    return pl.DataFrame([pl.Series(name, values, dtype=_dtype(values), strict=False) for name, values in columns.items()]).sort("id")


def _dtype(values: list[Any]) -> type[pl.DataType]:
    """One type a column in every file, whatever its values happen to be."""
    kinds = {type(value) for value in values} - {type(None)}
    return pl.String if str in kinds else pl.Boolean if kinds == {bool} else pl.Float64
