"""From rows of the prediction log and their outcomes to sums that add up over partitions."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import polars as pl

from mlops.contract import Contract
from mlops.log_schema import PredictionRecord
from monitoring.frames import COLUMNS

_CLIP = 1e-6
_CLOCK_SKEW_SECONDS = 300.0
_NOT_ASKED = ("busy", "dropped")  # no evidence about the challenger
_FAULTS = ("error", "nan", "died")
_LOGGED = ["id", "at", "revision", "entity", "event", "arm", "score", "caller"]
_LOGGED += ["champion_score", "challenger_score", "challenger_seconds", "fault"]
_ENTITIES = {"revision": pl.Int64, "arm": pl.Int64, "entity": pl.UInt64}
_SLICES = {"caller": pl.String, "day": pl.Date, "level": pl.String, "n": pl.UInt32, "d": pl.Float64, "slice": pl.String}
_LAST_MOMENT = 7_258_118_400.0  # 2200
_MAX_DAYS, _MAX_LEVELS = 400, 100  # of a caller in one partition: they choose both


@dataclass(frozen=True)
class Sums:
    """All but `entities` by `caller` too, since one must not decide. `revisions`, by revision, day of the event and day when
    it arrived: rows, attempts (requests to the challenger), timed, slow, faults,
    exposed (rows assigned to it), n and the moments x, y, xx, yy, xy of the champion's (x) and the challenger's scores.
    `days`, by day of the event: n, d (rows scored by both with a known outcome, and the sum of the challenger's loss less
    the champion's), n0, l0, n1, l1 (rows and losses of the answers by arm). `slices`: n, d by slice, level and day.
    `entities`: distinct ones, by revision and arm; a sample if there are many."""

    revisions: pl.DataFrame
    days: pl.DataFrame
    slices: pl.DataFrame
    entities: pl.DataFrame
    unreadable: int = 0


@dataclass(frozen=True)
class Measures:
    """What is summed for a contract. `unit`: of the loss, and of a regression's score."""

    contract: Contract
    unit: float = 1.0

    @property
    def columns(self) -> dict[str, Any]:
        logged = {name: COLUMNS[PredictionRecord][name] for name in _LOGGED}
        return logged | {f"feature.{name}": pl.String for name in self.contract.slices}

    def sums(self, rows: pl.DataFrame, outcomes: pl.DataFrame, first_revision: int, now: datetime) -> Sums:
        """Of one partition; `entities` are not counted yet."""
        rows = self._in_rollout(rows, first_revision, now)
        champion, challenger, got = map(pl.col, ("champion_score", "challenger_score", "score"))
        slices = [f"feature.{name}" for name in self.contract.slices]
        losses = rows.join(outcomes.select("id", "value"), on="id", how="left").select(
            *slices, "arm", "caller", "day", "moment",
            champion=self.loss(champion), challenger=self.loss(challenger), got=self.loss(got),
        )  # fmt: skip
        difference = pl.col("challenger") - pl.col("champion")
        difference = difference.filter(pl.col("challenger").is_finite() & pl.col("champion").is_finite())
        paired, answered = {"n": difference.count(), "d": difference.sum()}, {}
        for arm in (0, 1):
            loss = pl.col("got").filter((pl.col("arm") == arm) & pl.col("got").is_finite())
            answered |= {f"n{arm}": loss.count(), f"l{arm}": loss.sum()}
        by_slice = []
        for name in slices:
            common = losses.filter(_common(losses, name, _MAX_LEVELS))
            grouped = common.group_by("caller", "day", pl.col(name).alias("level")).agg(**paired)
            by_slice.append(grouped.with_columns(slice=pl.lit(name.removeprefix("feature."))))
        entities = rows.filter(pl.col("entity").is_not_null())
        return Sums(
            self._revisions(rows),
            losses.group_by("caller", "day").agg(rows=pl.len(), last=pl.col("moment").max(), **paired, **answered),
            pl.concat([pl.DataFrame(schema=_SLICES), *by_slice], how="vertical_relaxed"),
            entities.select("revision", "arm", entity=pl.col("entity").hash()).unique(),
        )

    def _in_rollout(self, rows: pl.DataFrame, first_revision: int, now: datetime) -> pl.DataFrame:
        """The rows that count, dated."""
        known = pl.col("arm").is_not_null() & (pl.col("revision") >= first_revision)
        return self.dated(rows.filter(known, pl.col("at").is_between(0, now.timestamp() + _CLOCK_SKEW_SECONDS)))

    def dated(self, rows: pl.DataFrame) -> pl.DataFrame:
        """With the moment and the local day of their event, and the day when they arrived. Callers write what they like, so
        the moment, which is the log's clock, is never after arrival, and a caller's rarest days are those of arrival."""
        rows = rows.with_columns(
            moment=pl.min_horizontal(_event(), "at"), day=self.day, arrived=self._date(pl.col("at"))
        )
        return rows.with_columns(day=pl.when(_common(rows, "day", _MAX_DAYS)).then("day").otherwise("arrived"))

    @property
    def day(self) -> pl.Expr:
        """The local day of a row's event."""
        return self._date(_event())

    def _date(self, seconds: pl.Expr) -> pl.Expr:
        utc = pl.from_epoch((seconds * 1000).cast(pl.Int64), time_unit="ms").dt.replace_time_zone("UTC")
        return utc.dt.convert_time_zone(self.contract.zone).dt.date()

    def _revisions(self, rows: pl.DataFrame) -> pl.DataFrame:
        champion, challenger = pl.col("champion_score"), pl.col("challenger_score")
        both, fault = champion.is_finite() & challenger.is_finite(), pl.col("fault").fill_null("")
        x, y = (self._linear(score).filter(both) for score in (champion, challenger))
        failed = fault.is_in(_FAULTS) | (fault == "") & ~challenger.is_finite().fill_null(value=False)
        # The rows of one request and arm succeed or fail together.
        attempt = (pl.col("at") * 1e6).cast(pl.Int64) * 2 + pl.col("arm")
        asked = ~fault.is_in(_NOT_ASKED)
        timed = asked & (pl.col("challenger_seconds").is_not_null() | (fault == "slow"))
        chosen = {"attempts": asked, "timed": timed, "slow": fault == "slow", "faults": failed}
        return rows.group_by("revision", "caller", "day", "arrived").agg(
            rows=pl.len(), exposed=pl.col("arm").sum(), n=both.sum(),
            **{name: attempt.filter(condition).n_unique() for name, condition in chosen.items()},
            x=x.sum(), y=y.sum(), xx=(x * x).sum(), yy=(y * y).sum(), xy=(x * y).sum(),
        )  # fmt: skip

    def _linear(self, score: pl.Expr) -> pl.Expr:
        """Logits (binary), units of the target's spread (regression)."""
        if self.contract.task == "regression":
            return score / self.unit
        clipped = score.clip(_CLIP, 1 - _CLIP)
        return (clipped / (1 - clipped)).log()

    def loss(self, score: pl.Expr) -> pl.Expr:
        """Of a score against the column `value`; null if that is. A test compares it with `training.evaluation.loss`."""
        value = pl.col("value")
        if self.contract.task == "regression":
            return (value - score).abs() / self.unit
        clipped = score.clip(_CLIP, 1 - _CLIP)
        log_loss = -pl.when(value > 0.5).then(clipped.log()).when(value.is_not_null()).then((1 - clipped).log())
        return log_loss / self.unit


def _event() -> pl.Expr:
    """In Unix seconds, or else the arrival."""
    return pl.coalesce(pl.when(pl.col("event").is_between(0, _LAST_MOMENT, closed="left")).then("event"), "at")


def _common(rows: pl.DataFrame, name: str, most: int) -> pl.Expr:
    """Whether a row has one of its caller's `most` most frequent values."""
    if rows[name].n_unique() <= most:
        return pl.lit(value=True)
    value = pl.col(name).hash()
    often = pl.len().over("caller", name)
    return pl.struct(often, value).rank("dense", descending=True).over("caller") <= most


def add_up(parts: list[Sums], entities: pl.DataFrame, unreadable: int) -> Sums:
    """`entities`: revision, arm and entity of all parts."""
    return Sums(
        added([part.revisions for part in parts], ["revision", "caller", "day", "arrived"]),
        added([part.days for part in parts], ["caller", "day"]),
        added([part.slices for part in parts], ["slice", "level", "caller", "day"]),
        entities.group_by("revision", "arm").len("entities"),
        unreadable,
    )


def added(frames: list[pl.DataFrame], by: list[str]) -> pl.DataFrame:
    """The sums of all frames, and the greatest `last`, by these columns."""
    whole = pl.concat(frames)
    sums = [name for name in whole.columns if name not in (*by, "last")]
    last = [pl.col("last").max()] if "last" in whole.columns else []
    return whole.group_by(by).agg(pl.col(sums).sum(), *last).sort(by)


def no_entities() -> pl.DataFrame:
    return pl.DataFrame(schema=_ENTITIES)
