from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import NamedTuple

import polars as pl

from mlops.registered_model import RegisteredModel
from monitoring import files
from monitoring.frames import COLUMNS, KINDS, hour_of_id, parquet
from monitoring.outcomes import possible
from monitoring.partitions import over

_GRACE = timedelta(minutes=5)  # a segment of the hour before may be on its way
_AT_ONCE = 200  # segments: what is in memory at a time


class Compacted(NamedTuple):
    """Rows written as Parquet; lines and rows that were none of ours, and outcomes of no prediction that could be; files
    set aside."""

    rows: int = 0
    lost: int = 0
    damaged: int = 0


def waiting(model: RegisteredModel, kind: str, now: datetime | None = None) -> list[str]:
    """Uploaded segments of closed hours."""
    closed = (now or datetime.now(UTC)) - _GRACE
    newest = f"{kind}/{model.name}/{closed:%Y-%m-%d/%H}"
    keys = [key for key in files.listed(model.store, f"{kind}/{model.name}") if key.endswith(".log")]
    return [key for key in keys if key.rsplit("/", 1)[0] < newest]


def compact(model: RegisteredModel, kind: str, now: datetime | None = None) -> Compacted:
    """Segments of closed hours become Parquet, and so does what is good in damaged files, which are set aside.

    The Parquet is written before its segments are deleted: if the process is killed in between, rows are there twice, and
    every reader drops duplicates.
    """
    now = now or datetime.now(UTC)
    found = {key for key in files.damaged.copy() if key.startswith(f"{kind}/{model.name}/")}
    keys, done = sorted({*waiting(model, kind, now), *found}), Compacted()
    for (folder, revision), group in groupby(keys, key=_hour_and_revision):
        for part in _parts(list(group)):
            more = _compact(model, kind, folder, revision, part, now)
            done = Compacted(*map(sum, zip(done, more, strict=True)))
    return done


def _compact(
    model: RegisteredModel, kind: str, folder: str, revision: str, keys: list[str], now: datetime
) -> Compacted:
    read = {key: files.read(model.store, key) for key in keys}
    there = {key: each for key, each in read.items() if each and (each.lost or key.endswith(".log"))}
    if not there:
        return Compacted()
    tables = [pl.DataFrame(schema=COLUMNS[KINDS[kind]]), *(each.rows for each in there.values())]
    table = pl.concat(tables, how="diagonal_relaxed").sort("id")
    good = table if kind == "predictions" else table.filter(possible())
    for hour, part in _by_hour(good, kind, folder, now):
        files.put(model.store, f"{kind}/{model.name}/{hour}/{revision}", parquet(part), "parquet")
    damaged = [key for key in there if key in files.damaged]
    for key in damaged:
        files.set_aside(model.store, key)
    for key in (key for key, each in there.items() if not each.lost):
        model.store.delete(key)
    lost = sum(each.lost for each in there.values()) + table.height - good.height
    return Compacted(good.height, lost, len(damaged))


def _hour_and_revision(key: str) -> tuple[str, str]:
    folder, _, name = key.rpartition("/")
    return folder, name.partition("-")[0]


def _by_hour(table: pl.DataFrame, kind: str, folder: str, now: datetime) -> Iterator[tuple[str, pl.DataFrame]]:
    """Outcomes go to the hour of their prediction, where they are joined, and those of a day that is well over to one file
    of it; predictions stay in their own."""
    if kind == "predictions":
        yield "/".join(folder.split("/")[-2:]), table
        return
    hour = hour_of_id(pl.col("id"))
    late = hour.str.slice(0, 10) < over(now)
    table = table.with_columns(hour=pl.when(late).then(hour.str.slice(0, 11) + files.LATE).otherwise(hour))
    for (place,), part in table.group_by("hour", maintain_order=True):
        yield str(place), part.drop("hour")


def _parts(keys: list[str]) -> Iterator[list[str]]:
    yield from (keys[start : start + _AT_ONCE] for start in range(0, len(keys), _AT_ONCE))
