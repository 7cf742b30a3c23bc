"""What the app logs of a model that serves: the rows of a table as requests, and their outcomes; some of them poisoned."""

from __future__ import annotations

import hashlib
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import msgspec
import numpy as np
import polars as pl

from app.batch import Batch, Live
from app.prediction_log import _record
from mlops import bundle as bundles
from mlops import log_schema
from mlops.bundle import Bundle
from mlops.environment import Environment
from mlops.model import Model
from mlops.registered_model import RegisteredModel
from mlops.store import Store
from tests import synthetic
from tests.ids import new_id
from training.replay import request_rows

TRAINED, KNOWN, LIVE = 60, 70, 60  # days to train on; that the champion's training knew; of the log
DAYS, A_DAY = KNOWN + LIVE, 60


def contract_yaml(task: str = "binary", **changes: Any) -> dict[str, Any]:
    """The log keeps all features; the windows of the first training end where the log begins."""
    made = synthetic.contract_yaml(task)
    made["features"]["group"] = {"type": "category", "protected": True}
    days = [f"{synthetic.START.date() + timedelta(each)}" for each in (0, TRAINED, KNOWN)]
    made["windows"] = {"train": f"{days[0]}..{days[1]}", "holdout": f"{days[1]}..{days[2]}"}
    return made | changes


def rows(seed: int = 0, days: int = DAYS, **options: Any) -> pl.DataFrame:
    return synthetic.frame(days, A_DAY, seed, **options)


def live(frame: pl.DataFrame) -> pl.DataFrame:
    """The rows after the first training."""
    return frame.filter(pl.col("at") >= synthetic.START + timedelta(KNOWN))


def shifted(frame: pl.DataFrame, rise: float = 0.25, seed: int = 0) -> pl.DataFrame:
    """As if the world had changed: so many of the negative outcomes are positive (amounts: larger by 40 times as much)."""
    hit = pl.Series(np.random.default_rng(seed).random(frame.height) < rise)
    return frame.with_columns(y=pl.when(hit).then(1).otherwise(pl.col("y")), amount=pl.col("amount") + 40 * rise)


def serve(environment: Environment, bundle: Bundle) -> RegisteredModel:
    """Without approval: nothing here asks for it."""
    model = environment.model(bundle.contract.model)
    model.releases.append(bundles.write(model, bundle), "first")
    return model


@dataclass
class Traffic:
    """`callers` and `values` (outcomes; None: none) are those of the rows; `again`: values received later, by row."""

    rows: pl.DataFrame
    target: str = "y"
    callers: list[str] = field(default_factory=list)
    values: list[float | None] = field(default_factory=list)
    again: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.callers = self.callers or ["shop"] * self.rows.height
        self.values = self.values or self.rows[self.target].cast(pl.Float64).to_list()

    def log(self, model: RegisteredModel, at: float | None = None) -> list[str]:
        """Returns the ids of the predictions, in the order of the rows."""
        release, at = model.releases.current(), at or time.time()
        assert release
        bundle = bundles.read(model, release.champion)
        serving = Live(release, Model(bundle, release.champion))
        schema = serving.model.schema
        asked = [schema.row(row) for row in request_rows(self.rows, bundle.contract)]
        ids = [new_id() for _ in asked]
        batch = Batch(serving, at, ids, asked, serving.model.score(asked))
        answered, records = batch.answered(), []
        for position, batch.caller in enumerate(self.callers):
            records.append(_record(batch, position, model.log_key.hashed, *answered))
        known = [(ids[position], value) for position, value in enumerate(self.values) if value is not None]
        later = [(ids[position], value) for position, value in self.again.items()]
        put(model.store, "predictions", model.name, at, release.revision, *records)
        for moment, told in ((at + 1, known), (at + 2, later)):
            put(
                model.store, "outcomes", model.name, moment, 0,
                *(log_schema.OutcomeRecord(each, value, moment) for each, value in told),
            )  # fmt: skip
        return ids


def put(store: Store, kind: str, model: str, at: float, revision: int, *records: log_schema.Record) -> str:
    """A segment of the hour of `at`, also of what the app would not write; returns its key."""
    bodies = map(msgspec.json.encode, records)
    content = b"".join(b"%08x %s\n" % (zlib.crc32(body), body) for body in bodies)
    key = log_schema.segment_key(kind, model, at, revision, hashlib.sha256(content).hexdigest())
    store.put(key, content)
    return key


def resend(model: RegisteredModel, values: dict[str, float]) -> None:
    """Outcomes, by the id of their prediction, that replace earlier ones."""
    at = time.time() + 10
    told = [log_schema.OutcomeRecord(each, value, at) for each, value in values.items()]
    put(model.store, "outcomes", model.name, at, 0, *told)


def _some(traffic: Traffic, share: float) -> list[int]:
    n = traffic.rows.height
    return np.random.default_rng(1).choice(n, int(share * n), replace=False).tolist()


def changed(traffic: Traffic) -> None:
    traffic.again = {position: 1.0 - (traffic.values[position] or 0.0) for position in _some(traffic, 0.05)}


def impossible(traffic: Traffic) -> None:
    for position in _some(traffic, 0.03):
        traffic.values[position] = 7.0


def burst(traffic: Traffic) -> None:
    """Another key sends most rows, all in four days."""
    day = traffic.rows["at"].dt.date()
    few = traffic.rows.filter(day.is_in(day.unique().sort().tail(8).head(4).to_list()))
    many = pl.concat([few] * (traffic.rows.height // few.height + 2))
    traffic.rows = pl.concat([traffic.rows, many])
    traffic.callers += ["stranger"] * many.height
    traffic.values += many[traffic.target].cast(pl.Float64).to_list()


def one_entity(traffic: Traffic) -> None:
    hit = pl.Series(np.isin(np.arange(traffic.rows.height), _some(traffic, 0.3)))
    traffic.rows = traffic.rows.with_columns(customer=pl.when(hit).then(pl.lit("c1")).otherwise(pl.col("customer")))


def backwards(traffic: Traffic) -> None:
    traffic.values = [None if value is None else 1.0 - value for value in traffic.values]


# What is done to a window → what its refusal says.
POISON: dict[str, tuple[Callable[[Traffic], None], str]] = {
    "outcomes changed": (changed, "of the outcomes were changed"),
    "impossible outcomes": (impossible, "are impossible by the contract"),
    "a burst of one API key": (burst, "API key stranger sent"),
    "one entity": (one_entity, "are about one entity"),
    "outcomes backwards": (backwards, "rank the outcomes backwards"),
}
