"""The prediction log by day of the event: its rows in the bins of the champion's profile, and, with their outcomes, what
they say of each model version."""

from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import numpy as np
import polars as pl

from mlops import profile
from mlops.bundle import Bundle
from mlops.contract import Contract
from mlops.log_schema import PredictionRecord
from mlops.registered_model import RegisteredModel
from monitoring.frames import COLUMNS, features
from monitoring.partitions import OUTCOMES, Partitions
from monitoring.sums import Measures, added

_LOGGED = {name: COLUMNS[PredictionRecord][name] for name in ("id", "at", "event", "model_version", "score", "caller")}
_SCORE_BINS = 200  # of a ranking: with so many the AUC is exact to three digits
_BOOLEANS = {"true": 1.0, "false": 0.0}
Counts = dict[date, dict[str, np.ndarray]]  # rows by day, feature and bin


@dataclass(frozen=True)
class Days:
    """`quality`, by day and model_version: rows, last (moment), n (with an outcome), and sums over those: loss, score,
    value, above (score over value, less half), error (absolute). `ranks`, by day, model_version and rank (of the score):
    positive, negative."""

    counts: Counts
    quality: pl.DataFrame
    ranks: pl.DataFrame
    unreadable: int = 0


class Daily:
    """What is in memory is one partition, and the sums of all."""

    def __init__(self, model: RegisteredModel, digest: str, bundle: Bundle):
        self.contract, self.profile, self.digest = bundle.contract, bundle.json("profile.json"), digest
        self.measures = Measures(self.contract, float(self.profile["target"]["scale"]))
        self.bins = logged_bins(self.contract, self.profile)
        for name in {name for name in self.contract.logged["hash"] if "levels" in self.bins.get(name, ())}:
            levels = [model.log_key.hashed(name, level) for level in self.bins[name]["levels"]]
            self.bins[name] = self.bins[name] | {"levels": levels}
        logged = [name for name in self.bins if name in self.contract.features]
        self._partitions = Partitions(model, _LOGGED | features(self.contract, logged), self._reduce)

    def look(self, since: datetime, now: datetime) -> Days:
        nothing = self._reduce(pl.DataFrame(schema=self._partitions.schema), pl.DataFrame(schema=OUTCOMES))
        parts = [nothing, *self._partitions.look(since, now)]
        counts: Counts = {}
        for part in parts:
            for day, found in part.counts.items():
                so_far = counts.get(day, {})
                counts[day] = {name: rows + so_far.get(name, 0) for name, rows in found.items()}
        quality = added([part.quality for part in parts], ["day", "model_version"])
        ranks = added([part.ranks for part in parts], ["day", "model_version", "rank"])
        return Days(dict(sorted(counts.items())), quality, ranks, self._partitions.unreadable)

    def _reduce(self, rows: pl.DataFrame, outcomes: pl.DataFrame) -> Days:
        rows = self.measures.dated(rows)
        counts = {day: self._count(rows.filter(pl.col("day") == day)) for day in rows["day"].unique()}
        scored = rows.select("id", "day", "model_version", "score", "moment")
        scored = scored.filter(pl.col("score").is_finite()).join(outcomes.select("id", "value"), on="id", how="left")
        score, value = pl.col("score"), pl.col("value")
        known, by = value.is_not_null(), ("day", "model_version")
        quality = scored.group_by(by).agg(
            rows=pl.len(), last=pl.col("moment").max(), n=known.sum(), loss=self.measures.loss(score).sum(),
            score=score.filter(known).sum(), value=value.sum(), above=((score - value).sign() / 2).sum(),
            error=(score - value).abs().sum(),
        )  # fmt: skip
        rank = (score * _SCORE_BINS).floor().clip(0, _SCORE_BINS - 1).cast(pl.Int32)
        classes = pl.lit(self.contract.task == "binary")
        ranks = (
            scored.filter(known & classes)
            .group_by(*by, rank=rank)
            .agg(positive=(value > 0.5).sum(), negative=(value <= 0.5).sum())
        )
        return Days(counts, quality, ranks)

    def _count(self, rows: pl.DataFrame) -> dict[str, np.ndarray]:
        return {name: self._count_one(rows, name) for name in self.bins}

    def _count_one(self, rows: pl.DataFrame, name: str) -> np.ndarray:
        bins = self.bins[name]
        if name == "score":
            return profile.count(bins, rows.filter(pl.col("model_version") == self.digest)["score"].to_numpy())
        column = rows[f"feature.{name}"]
        if column.dtype == pl.Float64:
            return profile.count(bins, column.to_numpy())
        levels = column.value_counts(name="rows")
        values = [_BOOLEANS.get(each, each) for each in levels[column.name]] if "edges" in bins else levels[column.name]
        return profile.count(bins, list(values), levels["rows"].to_numpy())


def logged_bins(contract: Contract, profile: dict[str, Any]) -> dict[str, Any]:
    """The bins of what the log can tell: not of features that it drops, nor of numbers that it hashes."""
    bins, how = profile["bins"], {name: contract.features[name].log for name in profile["watched"]}
    told = [name for name in how if how[name] == "keep" or (how[name] == "hash" and "levels" in bins[name])]
    return {name: bins[name] for name in (*told, "score")}
