"""The prediction log of a rollout, read in partitions.

A partition is an hour of the log with the outcomes of its rows, or six hours of a day that is well over. It is read once,
and again only when one of its files is new, so a look costs what came since the last one. Unreadable files are counted:
with them nothing is promoted.
"""

from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import msgspec
import polars as pl

from mlops.log_schema import OutcomeRecord, PredictionRecord
from mlops.registered_model import RegisteredModel
from monitoring.frames import Kind, hour_of_id, read
from monitoring.sums import OUTCOMES, Measures, Sums, add_up, empty, no_entities

_RECENT = timedelta(days=2)
Keys = dict[str, list[str]]  # by partition


@dataclass
class Evidence:
    model: RegisteredModel
    measures: Measures
    _partitions: dict[str, tuple[frozenset[str], Sums]] = field(default_factory=dict)  # with the files they are from
    _entities: pl.DataFrame = field(default_factory=no_entities)  # never removed
    _segments: dict[str, pl.DataFrame | None] = field(default_factory=dict)  # None: unreadable

    def look(self, first_revision: int, since: datetime, now: datetime) -> Sums:
        """All answers of the releases from `first_revision` on, which was written at `since`."""
        predictions = self._list("predictions", since, now, first_revision)
        outcomes = self._list("outcomes", since, now)
        waiting = self._waiting_outcomes(outcomes, now)
        listed = {key for keys in (*predictions.values(), *outcomes.values()) for key in keys}
        self._segments = {key: frame for key, frame in self._segments.items() if key in listed}
        unreadable = 0
        for name, keys in predictions.items():
            late, late_keys = waiting.get(name, (empty(OUTCOMES), frozenset()))
            parquet = [key for key in outcomes.get(name, ()) if key.endswith(".parquet")]
            files = frozenset([*keys, *parquet]) | late_keys
            if name not in self._partitions or self._partitions[name][0] != files:
                rows, known = self._read(keys, PredictionRecord), self._read(parquet, OutcomeRecord)
                lost = sum(frame is None for frame in (*rows, *known))
                unreadable += lost
                present = [frame for frame in rows if frame is not None]
                values = [late, *(frame for frame in known if frame is not None)]
                whole = pl.concat([empty(self.measures.columns), *present])
                sums = self.measures.sums(whole, pl.concat([empty(OUTCOMES), *values]), first_revision, now)
                self._partitions[name] = frozenset() if lost else files, sums
                self._entities = pl.concat([self._entities, sums.entities]).unique()
        self._partitions = {name: each for name, each in self._partitions.items() if name in predictions}
        unreadable += sum(frame is None for key, frame in self._segments.items() if key.startswith("outcomes/"))
        nothing = self.measures.sums(empty(self.measures.columns), empty(OUTCOMES), first_revision, now)
        return add_up([nothing, *(sums for _, sums in self._partitions.values())], self._entities, unreadable)

    def _list(self, kind: str, since: datetime, now: datetime, first_revision: int = 0) -> Keys:
        """From the hour of `since` on."""
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
        schema, frames = self.measures.columns if kind is PredictionRecord else OUTCOMES, []
        for key in keys:
            frame = self._segments.get(key)
            if frame is None:
                with suppress(msgspec.DecodeError, pl.exceptions.PolarsError):
                    frame = read(self.model.store, key, kind, schema)
            if not key.endswith(".parquet"):
                self._segments[key] = frame
            frames.append(frame)
        return frames


def _partition(hour: str, now: datetime) -> str:
    """`hour` as `<day>/<hour>`; six hours of a day that is well over make one partition, which still fits in memory."""
    return f"{hour[:10]}/{int(hour[11:]) // 6}-" if hour[:10] < f"{now.astimezone(UTC) - _RECENT:%Y-%m-%d}" else hour
