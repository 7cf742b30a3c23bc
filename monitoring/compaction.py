import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any

import polars as pl

from mlops import log_schema
from mlops.registered_model import RegisteredModel
from mlops.store import Store
from monitoring.frames import COLUMNS, KINDS, Kind, decoded, hour_of_id, parquet

_GRACE = timedelta(minutes=5)  # a segment of the hour before may be on its way
_AT_ONCE = 200  # segments: what is in memory at a time


def waiting(model: RegisteredModel, kind: str, now: datetime | None = None) -> list[str]:
    """Uploaded segments of closed hours."""
    closed = (now or datetime.now(UTC)) - _GRACE
    newest = f"{kind}/{model.name}/{closed:%Y-%m-%d/%H}"
    keys = [key for key in model.store.keys(f"{kind}/{model.name}") if key.endswith(".log")]
    return [key for key in keys if key.rsplit("/", 1)[0] < newest]


def compact(model: RegisteredModel, kind: str, now: datetime | None = None) -> int:
    """Segments of closed hours become Parquet; returns the rows written.

    The Parquet is written before its segments are deleted: if the process is killed in between, rows are there twice, and
    every reader drops duplicates.
    """
    written = 0
    for (folder, revision), group in groupby(waiting(model, kind, now), key=_hour_and_revision):
        for keys in _parts(list(group)):
            table = _table(model.store, keys, KINDS[kind])
            name = hashlib.sha256("".join(keys).encode()).hexdigest()[:16]
            for hour, part in _by_hour(table, kind, folder):
                model.store.put(f"{kind}/{model.name}/{hour}/{revision}-{name}.parquet", parquet(part))
            for key in keys:
                model.store.delete(key)
            written += table.height
    return written


def _hour_and_revision(key: str) -> tuple[str, str]:
    folder, _, name = key.rpartition("/")
    return folder, name.partition("-")[0]


def _by_hour(table: pl.DataFrame, kind: str, folder: str) -> Iterator[tuple[str, pl.DataFrame]]:
    """Outcomes go to the hour of their prediction, where they are joined; predictions stay in their own."""
    here = "/".join(folder.split("/")[-2:])
    if kind == "predictions":
        yield here, table
        return
    table = table.with_columns(hour=hour_of_id(pl.col("id")).fill_null(here))
    for (hour,), part in table.group_by("hour", maintain_order=True):
        yield str(hour), part.drop("hour")


def _parts(keys: list[str]) -> Iterator[list[str]]:
    yield from (keys[start : start + _AT_ONCE] for start in range(0, len(keys), _AT_ONCE))


def _table(store: Store, keys: list[str], kind: Kind) -> pl.DataFrame:
    rows = [row for key in keys for row in decoded(store.get(key) or b"", kind)]
    columns = [pl.Series(name, [getattr(row, name) for row in rows], dtype) for name, dtype in COLUMNS[kind].items()]
    if kind is log_schema.PredictionRecord:
        for name in sorted({name for row in rows for name in row.features}):
            values = [row.features.get(name) for row in rows]
            columns.append(pl.Series(f"feature.{name}", values, _dtype(values), strict=False))
    return pl.DataFrame(columns).sort("id")


def _dtype(values: list[Any]) -> type[pl.DataType]:
    """One type for a feature in every file, whatever its values are."""
    kinds = {type(value) for value in values} - {type(None)}
    return pl.String if str in kinds else pl.Boolean if kinds == {bool} else pl.Float64
