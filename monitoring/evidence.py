"""The prediction log of a rollout as sums. Unreadable files are counted: with them nothing is promoted."""

from datetime import datetime

import polars as pl

from mlops.registered_model import RegisteredModel
from monitoring.partitions import OUTCOMES, Partitions
from monitoring.sums import Measures, Sums, add_up, no_entities

_MAX_ENTITIES = 1_000_000


class Evidence:
    def __init__(self, model: RegisteredModel, measures: Measures):
        self.measures = measures
        self._partitions = Partitions(model, measures.columns, self._sums)
        self._entities, self._below = no_entities(), 2**64 - 1  # hashes; a sample, if there are too many
        self._first_revision, self._now = 0, datetime.min

    def look(self, first_revision: int, since: datetime, now: datetime) -> Sums:
        """All answers of the releases from `first_revision` on, which was written at `since`."""
        self._first_revision, self._now = first_revision, now
        parts = self._partitions.look(since, now, first_revision)
        nothing = self._sums(pl.DataFrame(schema=self.measures.columns), pl.DataFrame(schema=OUTCOMES))
        return add_up([nothing, *parts], self._entities, self._partitions.unreadable)

    def _sums(self, rows: pl.DataFrame, outcomes: pl.DataFrame) -> Sums:
        sums = self.measures.sums(rows, outcomes, self._first_revision, self._now)
        fresh = sums.entities.filter(pl.col("entity") <= self._below)
        self._entities = pl.concat([self._entities, fresh]).unique()
        while self._entities.height > _MAX_ENTITIES:
            self._below //= 2
            self._entities = self._entities.filter(pl.col("entity") <= self._below)
        return sums
