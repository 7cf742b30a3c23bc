"""The prediction log, read in partitions.

A partition is an hour of the log with the outcomes of its rows, or six hours of a day that is well over. It is read once,
and again only when one of its files is new, so a look costs what came since the last one.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Generic, TypeVar

import msgspec
import polars as pl

from mlops.contract import Contract
from mlops.log_schema import OutcomeRecord, PredictionRecord
from mlops.registered_model import RegisteredModel
from monitoring.frames import COLUMNS, Kind, hour_of_id, read

OUTCOMES = COLUMNS[OutcomeRecord] | {"changed": pl.Boolean}
_RECENT = timedelta(days=2)
Keys = dict[str, list[str]]  # by partition
Found = TypeVar("Found")


@dataclass
class Partitions(Generic[Found]):
    """`reduce` makes of the rows of one partition (with the columns of `schema`) and their outcomes what is kept of it. The
    last outcome received counts; `changed`: another one was received before it."""

    model: RegisteredModel
    schema: dict[str, Any]
    reduce: Callable[[pl.DataFrame, pl.DataFrame], Found]
    unreadable: int = 0  # files, at the last look
    _kept: dict[str, tuple[frozenset[str], Found]] = field(default_factory=dict)  # with the files it is from
    _segments: dict[str, pl.DataFrame | None] = field(default_factory=dict)  # None: unreadable

    def look(self, since: datetime, now: datetime, first_revision: int = 0) -> list[Found]:
        """All that was logged from the hour of `since` on, by releases from `first_revision` on."""
        predictions = self._list("predictions", since, now, first_revision)
        outcomes = self._list("outcomes", since, now)
        waiting = self._waiting_outcomes(outcomes, now)
        listed = {key for keys in (*predictions.values(), *outcomes.values()) for key in keys}
        self._segments = {key: frame for key, frame in self._segments.items() if key in listed}
        self._kept = {name: each for name, each in self._kept.items() if name in predictions}
        self.unreadable = 0
        for name, keys in predictions.items():
            late, late_keys = waiting.get(name, (pl.DataFrame(schema=COLUMNS[OutcomeRecord]), frozenset()))
            parquet = [key for key in outcomes.get(name, ()) if key.endswith(".parquet")]
            files = frozenset([*keys, *parquet]) | late_keys
            if name not in self._kept or self._kept[name][0] != files:
                rows, known = self._read(keys, PredictionRecord), self._read(parquet, OutcomeRecord)
                lost = sum(frame is None for frame in (*rows, *known))
                self.unreadable += lost
                whole = _together(rows, self.schema)
                if len(keys) > 1 and whole["id"].hash().n_unique() < whole.height:  # one was being compacted
                    whole = whole.unique("id", maintain_order=False)
                values = _last(_together([late, *known], COLUMNS[OutcomeRecord]))
                self._kept[name] = frozenset() if lost else files, self.reduce(whole, values)
        self.unreadable += sum(frame is None for key, frame in self._segments.items() if key.startswith("outcomes/"))
        return [found for _, found in self._kept.values()]

    def _list(self, kind: str, since: datetime, now: datetime, first_revision: int = 0) -> Keys:
        found: Keys = defaultdict(list)
        prefix = f"{kind}/{self.model.name}"
        for key in self.model.store.keys(prefix, after=f"{prefix}/{since.astimezone(UTC):%Y-%m-%d/%H}"):
            hour, _, name = key.removeprefix(f"{prefix}/").rpartition("/")
            if kind == "outcomes" or (name[:8].isdigit() and int(name[:8]) >= first_revision):
                found[_partition(hour, now)].append(key)
        return found

    def _waiting_outcomes(self, outcomes: Keys, now: datetime) -> dict[str, tuple[pl.DataFrame, frozenset[str]]]:
        """Outcomes that are not compacted yet, by the partition of their prediction, with the segments they are from."""
        keys = [key for listed in outcomes.values() for key in listed if key.endswith(".log")]
        found: dict[str, list[tuple[str, pl.DataFrame]]] = defaultdict(list)
        for key, frame in zip(keys, self._read(keys, OutcomeRecord), strict=True):
            if frame is not None:
                for (hour,), part in frame.with_columns(hour=hour_of_id(pl.col("id"))).group_by("hour"):
                    found[_partition(str(hour), now)].append((key, part.drop("hour")))
        return {
            name: (pl.concat([part for _, part in each]), frozenset(key for key, _ in each))
            for name, each in found.items()
        }

    def _read(self, keys: Iterable[str], kind: Kind) -> list[pl.DataFrame | None]:
        """None for a file that is unreadable or gone. Segments are cached: their partition is read again."""
        schema, frames = self.schema if kind is PredictionRecord else COLUMNS[kind], []
        for key in keys:
            frame = self._segments.get(key)
            if frame is None:
                with suppress(msgspec.DecodeError, pl.exceptions.PolarsError):
                    frame = read(self.model.store, key, kind, schema)
            if not key.endswith(".parquet"):
                self._segments[key] = frame
            frames.append(frame)
        return frames


def arrival(contract: Contract, day: date) -> datetime:
    """From when on the log has the rows whose event is on that day or later."""
    lead = timedelta(days=2, minutes=contract.time.lead_minutes if contract.time else 0)
    return datetime.combine(day, time(), UTC) - lead


def _last(outcomes: pl.DataFrame) -> pl.DataFrame:
    if outcomes["id"].hash().n_unique() == outcomes.height:
        return outcomes.with_columns(changed=pl.lit(False))
    by_id = outcomes.sort("at").group_by("id")
    return by_id.agg(pl.col("value", "at").last(), changed=pl.col("value").n_unique() > 1).select(list(OUTCOMES))


def _together(frames: Iterable[pl.DataFrame | None], schema: dict[str, Any]) -> pl.DataFrame:
    return pl.concat([pl.DataFrame(schema=schema), *(frame for frame in frames if frame is not None)])


def _partition(hour: str, now: datetime) -> str:
    """`hour` as `<day>/<hour>`; six hours of a day that is well over make one partition, which still fits in memory."""
    return f"{hour[:10]}/{int(hour[11:]) // 6}-" if hour[:10] < f"{now.astimezone(UTC) - _RECENT:%Y-%m-%d}" else hour
