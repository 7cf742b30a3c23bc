"""The prediction log, read in partitions.

A partition is an hour of the log with the outcomes of its rows, or six hours of a day that is well over. It is read once,
and again only when one of its files is new, so a look costs what came since the last one.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from itertools import zip_longest
from typing import Generic, NamedTuple, TypeVar

import polars as pl

from mlops.contract import Contract
from mlops.log_schema import OutcomeRecord, PredictionRecord
from mlops.registered_model import RegisteredModel
from monitoring.decoder import Decoded
from monitoring.files import LATE, listed, read
from monitoring.frames import COLUMNS, KINDS, Kind, Schema, hour_of_id
from monitoring.outcomes import possible, settled

OUTCOMES = COLUMNS[OutcomeRecord] | {"changed": pl.Boolean}
_RECENT = timedelta(days=2)
Keys = dict[str, list[str]]  # by partition
Found = TypeVar("Found")
Loaded = TypeVar("Loaded")


class _Part(NamedTuple):
    """Files of predictions and of outcomes; outcomes that are not compacted yet, and their files."""

    name: str
    keys: list[str]
    outcomes: list[str]
    told: pl.DataFrame
    told_keys: frozenset[str]

    @property
    def files(self) -> frozenset[str]:
        return frozenset([*self.keys, *self.outcomes]) | self.told_keys


@dataclass
class Partitions(Generic[Found]):
    """`reduce` makes of the rows of one partition (with the columns of `schema`) and their outcomes, as `settled` has them,
    what is kept of it."""

    model: RegisteredModel
    schema: Schema
    reduce: Callable[[pl.DataFrame, pl.DataFrame], Found]
    unreadable: int = 0  # files, at the last look: damaged, set aside for it, or gone since they were listed
    _kept: dict[str, tuple[frozenset[str], Found]] = field(default_factory=dict)  # with the files it is from
    _segments: dict[str, Decoded] = field(default_factory=dict)

    def look(self, since: datetime, now: datetime, first_revision: int = 0) -> list[Found]:
        """All that was logged from the hour of `since` on, by releases from `first_revision` on."""
        predictions = self._list("predictions", since, now, first_revision)
        outcomes = self._list("outcomes", since, now)
        aside = [self._list(f"damaged/{kind}", since, now, first_revision) for kind in KINDS]
        self.unreadable = sum(len(keys) for each in aside for keys in each.values())
        waiting = self._waiting_outcomes(outcomes, now)
        there = {key for keys in (*predictions.values(), *outcomes.values()) for key in keys}
        self._segments = {key: each for key, each in self._segments.items() if key in there}
        self._kept = {name: each for name, each in self._kept.items() if name in predictions}
        parts = []
        for name, keys in predictions.items():
            told, told_keys = waiting.get(name, (pl.DataFrame(schema=COLUMNS[OutcomeRecord]), frozenset()))
            known = [*outcomes.get(name, ()), *outcomes.get(f"{name[:10]}/{LATE}", ())]
            parts.append(_Part(name, keys, [key for key in known if key.endswith(".parquet")], told, told_keys))
        new = [part for part in parts if part.name not in self._kept or self._kept[part.name][0] != part.files]
        for part, (rows, known) in _ahead(self._load, new):
            self.unreadable += (lost := _lost([*rows, *known]))
            whole = _together(rows, self.schema)
            if len(rows) > 1 and whole["id"].hash().n_unique() < whole.height:  # one was being compacted
                whole = whole.unique("id", maintain_order=False)
            values = settled(_together([Decoded(part.told, 0), *known], COLUMNS[OutcomeRecord]))
            self._kept[part.name] = frozenset() if lost else part.files, self.reduce(whole, values)
        return [found for _, found in self._kept.values()]

    def _load(self, part: "_Part") -> tuple[list[Decoded | None], list[Decoded | None]]:
        return self._read(part.keys, PredictionRecord), self._read(part.outcomes, OutcomeRecord)

    def _list(self, kind: str, since: datetime, now: datetime, first_revision: int = 0) -> Keys:
        found: Keys = defaultdict(list)
        prefix = f"{kind}/{self.model.name}"
        for key in listed(self.model.store, prefix, f"{prefix}/{since.astimezone(UTC):%Y-%m-%d/%H}"):
            hour, _, name = key.removeprefix(f"{prefix}/").rpartition("/")
            if kind.endswith("outcomes") or int(name[:8]) >= first_revision:
                found[_partition(hour, now)].append(key)
        return found

    def _waiting_outcomes(self, outcomes: Keys, now: datetime) -> dict[str, tuple[pl.DataFrame, frozenset[str]]]:
        """Outcomes that are not compacted yet, by the partition of their prediction, with the segments they are from."""
        keys = [key for each in outcomes.values() for key in each if key.endswith(".log")]
        files = self._read(keys, OutcomeRecord)
        self.unreadable += _lost(files)
        found: dict[str, list[tuple[str, pl.DataFrame]]] = defaultdict(list)
        for key, each in zip(keys, files, strict=True):
            told = each.rows.filter(possible()) if each else pl.DataFrame(schema=COLUMNS[OutcomeRecord])
            for (hour,), part in told.with_columns(hour=hour_of_id(pl.col("id"))).group_by("hour"):
                found[_partition(str(hour), now)].append((key, part.drop("hour")))
        return {
            name: (pl.concat([part for _, part in each]), frozenset(key for key, _ in each))
            for name, each in found.items()
        }

    def _read(self, keys: Iterable[str], kind: Kind) -> list[Decoded | None]:
        """None for a file that is gone. Segments are cached: their partition is read again."""
        schema, found = self.schema if kind is PredictionRecord else COLUMNS[kind], []
        for key in keys:
            each = self._segments.get(key)
            if each is None or each.lost:
                each = read(self.model.store, key, schema)
            if each and key.endswith(".log"):
                self._segments[key] = each
            found.append(each)
        return found


def arrival(contract: Contract, day: date) -> datetime:
    """From when on the log has the rows whose event is on that day or later."""
    lead = timedelta(days=2, minutes=contract.time.lead_minutes if contract.time else 0)
    return datetime.combine(day, time(), UTC) - lead


def over(now: datetime) -> str:
    """The first day that is not well over: partitions and files of those before are larger."""
    return f"{now.astimezone(UTC) - _RECENT:%Y-%m-%d}"


def _ahead(load: Callable[[_Part], Loaded], parts: list[_Part]) -> Iterator[tuple[_Part, Loaded]]:
    """Each with what is loaded of it, while the one before is in use."""
    with ThreadPoolExecutor(1) as thread:
        loading = [thread.submit(load, part) for part in parts[:1]]
        for part, following in zip_longest(parts, parts[1:]):
            loaded = loading.pop().result()
            loading = [thread.submit(load, following)] if following else []
            yield part, loaded


def _lost(files: Iterable[Decoded | None]) -> int:
    return sum(each is None or each.lost > 0 for each in files)


def _together(files: Iterable[Decoded | None], schema: Schema) -> pl.DataFrame:
    return pl.concat([pl.DataFrame(schema=schema), *(each.rows for each in files if each)])


def _partition(hour: str, now: datetime) -> str:
    """`hour` as `<day>/<hour>`; six hours of a day that is well over make one partition, which still fits in memory."""
    return f"{hour[:10]}/{int(hour[11:]) // 6}-" if hour[:10] < over(now) and hour[11:] != LATE else hour
