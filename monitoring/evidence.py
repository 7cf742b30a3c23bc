"""What the log says about a challenger, as sums that add up over partitions.

A partition is an hour of the prediction log with the outcomes of its rows, or six once they are well over. It is read
once, and again only when one of its files is new, so a look costs what came since the last one. Files that cannot be read are counted: they promote nobody.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import polars as pl

from mlops import records
from mlops.contract import Contract
from mlops.store import Store
from monitoring.frames import COLUMNS, Kind, hour_of_id, read

_CLIP = 1e-6
_AHEAD_SECONDS = 300.0  # what clocks may differ by
_RECENT = timedelta(days=2)
_NOT_ASKED = ("busy", "dropped")  # says nothing about the challenger
_FAULTS = ("error", "nan", "died")
_ROWS = ("id", "at", "epoch", "entity", "event", "arm", "score", "champion_score", "challenger_score", "challenger_seconds", "fault")
_OUTCOMES = COLUMNS[records.Outcome]


@dataclass(frozen=True)
class Seen:
    """Sums. `epochs`: rows, requests to the challenger, timed, slow and failed ones, exposed rows, and moments of both models' scores (x: the
    champion's) by epoch and day of the event. `days`: by that day; `n`, `d` are rows scored by both and known, and the sum of the
    challenger's loss less the champion's; `n0`, `l0`, `n1`, `l1` rows and losses of what callers got, by arm. `slices`:
    the same by column and level. `entities`: distinct ones, by epoch and arm."""

    epochs: pl.DataFrame
    days: pl.DataFrame
    slices: pl.DataFrame
    entities: pl.DataFrame
    unreadable: int = 0


@dataclass
class _Partition:
    files: frozenset[str]
    epochs: pl.DataFrame
    days: pl.DataFrame
    slices: pl.DataFrame


@dataclass
class Evidence:
    """`unit`: of the loss and the score, for regression; 1 for binary."""

    store: Store
    contract: Contract
    unit: float = 1.0
    _partitions: dict[str, _Partition] = field(default_factory=dict)
    _entities: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema={"epoch": pl.Int64, "arm": pl.Int64, "entity": pl.UInt64}))
    _segments: dict[str, pl.DataFrame | None] = field(default_factory=dict)  # None: cannot be read

    def look(self, first_epoch: int, since: datetime, now: datetime) -> Seen:
        """Everything that releases from `first_epoch` on, the first of them written at `since`, have answered."""
        predictions = self._listed("predictions", since, now, first_epoch)
        outcomes = self._listed("outcomes", since, now)
        told = self._told(outcomes, now)
        self._segments = {
            key: self._segments[key] for keys in (*predictions.values(), *outcomes.values()) for key in keys if key in self._segments
        }
        unreadable = 0
        for name, keys in predictions.items():
            waiting, waiting_keys = told.get(name, (pl.DataFrame(schema=_OUTCOMES), frozenset()))
            parquet = [key for key in outcomes.get(name, ()) if key.endswith(".parquet")]
            files = frozenset([*keys, *parquet]) | waiting_keys
            if name not in self._partitions or self._partitions[name].files != files:
                rows, outcome = self._frames(keys, records.Scored), self._frames(parquet, records.Outcome)
                lost = sum(frame is None for frame in (*rows, *outcome))
                unreadable += lost
                *found, entities = self._sums(_whole(rows, self._columns), _whole([*outcome, waiting], _OUTCOMES), first_epoch, now)
                self._partitions[name] = _Partition(files if not lost else frozenset(), *found)
                self._entities = pl.concat([self._entities, entities]).unique()  # none ever goes away
        self._partitions = {name: partition for name, partition in self._partitions.items() if name in predictions}
        unreadable += sum(frame is None for key, frame in self._segments.items() if key.startswith("outcomes/"))
        parts = list(self._partitions.values()) or [_Partition(frozenset(), *self._sums(*_nothing(self._columns), first_epoch, now)[:3])]
        return Seen(
            _added([part.epochs for part in parts], ["epoch", "day"]),
            _added([part.days for part in parts], ["day"]).sort("day"),
            _added([part.slices for part in parts], ["slice", "level", "day"]).sort("slice", "level", "day"),
            self._entities.group_by("epoch", "arm").len("entities"),
            unreadable,
        )

    @property
    def _columns(self) -> dict[str, Any]:
        logged = {name: COLUMNS[records.Scored][name] for name in _ROWS}
        return logged | {f"feature.{name}": pl.String for name in self.contract.slices}

    def _listed(self, kind: str, since: datetime, now: datetime, first_epoch: int = 0) -> dict[str, list[str]]:
        """Keys by partition, from the hour of `since` on."""
        found: dict[str, list[str]] = defaultdict(list)
        prefix = f"{kind}/{self.contract.model}"
        for key in self.store.keys(prefix, after=f"{prefix}/{since.astimezone(UTC):%Y-%m-%d/%H}"):
            hour, _, name = key.removeprefix(f"{prefix}/").rpartition("/")
            if kind == "outcomes" or (name[:8].isdigit() and int(name[:8]) >= first_epoch):
                found[_partition(hour, now)].append(key)
        return found

    def _told(self, outcomes: dict[str, list[str]], now: datetime) -> dict[str, tuple[pl.DataFrame, frozenset[str]]]:
        """Outcomes that are not compacted yet, by the partition of their prediction, and the segments that they are from."""
        keys = [key for found in outcomes.values() for key in found if key.endswith(".log")]
        frames = [(key, frame) for key, frame in zip(keys, self._frames(keys, records.Outcome), strict=True) if frame is not None]
        found: dict[str, list[tuple[str, pl.DataFrame]]] = defaultdict(list)
        for key, frame in frames:
            for (hour,), part in frame.with_columns(hour=hour_of_id(pl.col("id"))).group_by("hour"):
                found[_partition(str(hour), now)].append((key, part.drop("hour")))
        return {name: (pl.concat([part for _, part in parts]), frozenset(key for key, _ in parts)) for name, parts in found.items()}

    def _frames(self, keys: Iterable[str], kind: Kind) -> list[pl.DataFrame | None]:
        """None where a file cannot be read, or is gone. Segments are kept: their partition comes again."""
        found = []
        for key in keys:
            frame = self._segments.get(key)
            if frame is None:
                with suppress(msgspec.DecodeError, pl.exceptions.PolarsError):
                    frame = read(self.store, key, kind, self._columns if kind is records.Scored else _OUTCOMES)
            if not key.endswith(".parquet"):
                self._segments[key] = frame
            found.append(frame)
        return found

    def _sums(self, rows: pl.DataFrame, outcomes: pl.DataFrame, first_epoch: int, now: datetime) -> tuple[pl.DataFrame, ...]:
        rows = rows.filter(pl.col("arm").is_not_null(), pl.col("epoch") >= first_epoch, pl.col("at") < now.timestamp() + _AHEAD_SECONDS)
        if rows["id"].hash().n_unique() < rows.height:  # one that was being compacted is there twice
            rows = rows.unique("id", maintain_order=False)
        champion, challenger = pl.col("champion_score"), pl.col("challenger_score")
        both = champion.is_finite() & challenger.is_finite()
        x, y = (self._linear(score).filter(both) for score in (champion, challenger))
        fault = pl.col("fault").fill_null("")
        zone = self.contract.time.zone if self.contract.time else "UTC"
        moment = pl.coalesce("event", "at")
        local = pl.from_epoch((moment * 1000).cast(pl.Int64), time_unit="ms").dt.replace_time_zone("UTC").dt.convert_time_zone(zone)
        rows = rows.with_columns(moment=moment, day=local.dt.date())
        failed = fault.is_in(_FAULTS) | (fault == "") & ~challenger.is_finite().fill_null(value=False)
        attempt = (pl.col("at") * 1e6).cast(pl.Int64) * 2 + pl.col("arm")  # rows of one request share their fate
        asked = ~fault.is_in(_NOT_ASKED)
        timed = asked & (pl.col("challenger_seconds").is_not_null() | (fault == "slow"))
        epochs = rows.group_by("epoch", "day").agg(
            rows=pl.len(), attempts=attempt.filter(asked).n_unique(), timed=attempt.filter(timed).n_unique(), slow=attempt.filter(fault == "slow").n_unique(),
            exposed=pl.col("arm").sum(), faults=attempt.filter(failed).n_unique(), n=both.sum(),
            x=x.sum(), y=y.sum(), xx=(x * x).sum(), yy=(y * y).sum(), xy=(x * y).sum(),
        )  # fmt: skip
        if outcomes["id"].hash().n_unique() < outcomes.height:  # told more than once: the last received counts
            outcomes = outcomes.sort("at").unique("id", keep="last")
        names = [f"feature.{name}" for name in self.contract.slices]
        losses = rows.join(outcomes.select("id", "value"), on="id", how="left").select(
            *names, "arm", "day", "moment",
            champion=self.loss(champion), challenger=self.loss(challenger), got=self.loss(pl.col("score")),
        )  # fmt: skip
        difference = (pl.col("challenger") - pl.col("champion")).filter(pl.col("challenger").is_finite() & pl.col("champion").is_finite())
        paired = {"n": difference.count(), "d": difference.sum()}
        arms = {f"{what}{arm}": each for arm in (0, 1) for what, each in _of_arm(arm).items()}
        days = losses.group_by("day").agg(rows=pl.len(), last=pl.col("moment").max(), **paired, **arms)
        slices = [
            losses.group_by("day", pl.col(name).alias("level")).agg(**paired).with_columns(slice=pl.lit(name.removeprefix("feature.")))
            for name in names
        ]
        empty = pl.DataFrame(schema={"day": pl.Date, "level": pl.String, "n": pl.UInt32, "d": pl.Float64, "slice": pl.String})
        entities = rows.filter(pl.col("entity").is_not_null()).select("epoch", "arm", entity=pl.col("entity").hash()).unique()
        return epochs, days, pl.concat([empty, *slices], how="vertical_relaxed"), entities

    def _linear(self, score: pl.Expr) -> pl.Expr:
        """Logits (binary), units of the target's spread (regression)."""
        if self.contract.task == "regression":
            return score / self.unit
        clipped = score.clip(_CLIP, 1 - _CLIP)
        return (clipped / (1 - clipped)).log()

    def loss(self, score: pl.Expr) -> pl.Expr:
        """Of a score against the column `value`; null where that is."""
        if self.contract.task == "regression":
            return (pl.col("value") - score).abs() / self.unit
        clipped = score.clip(_CLIP, 1 - _CLIP)
        return -pl.when(pl.col("value") > 0.5).then(clipped.log()).when(pl.col("value").is_not_null()).then((1 - clipped).log())


def _partition(hour: str, now: datetime) -> str:
    """`hour` as `<day>/<hour>`; of days that are well over six hours make one: less to look after, and small enough to hold."""
    return f"{hour[:10]}/{int(hour[11:]) // 6}-" if hour[:10] < f"{now.astimezone(UTC) - _RECENT:%Y-%m-%d}" else hour


def _of_arm(arm: int) -> dict[str, pl.Expr]:
    mine = pl.col("got").filter((pl.col("arm") == arm) & pl.col("got").is_finite())
    return {"n": mine.count(), "l": mine.sum()}


def _whole(frames: list[pl.DataFrame | None], schema: dict[str, Any]) -> pl.DataFrame:
    return pl.concat([pl.DataFrame(schema=schema), *(frame for frame in frames if frame is not None)])


def _nothing(columns: dict[str, Any]) -> tuple[pl.DataFrame, pl.DataFrame]:
    return pl.DataFrame(schema=columns), pl.DataFrame(schema=_OUTCOMES)


def _added(parts: list[pl.DataFrame], by: list[str]) -> pl.DataFrame:
    whole = pl.concat(parts)
    sums = [name for name in whole.columns if name not in (*by, "last")]
    return whole.group_by(by).agg(pl.col(sums).sum(), *([pl.col("last").max()] if "last" in whole.columns else []))
