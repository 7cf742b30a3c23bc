from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

import polars as pl

from mlops.errors import UserError
from mlops.log_schema import OutcomeRecord, PredictionRecord
from mlops.registered_model import RegisteredModel
from monitoring.files import listed, read
from monitoring.frames import COLUMNS, Schema, millis_of_id

_NAMES = ("id", "at", "revision", "model_version", "score", "prediction", "event")
_PREDICTIONS = {name: COLUMNS[PredictionRecord][name] for name in _NAMES}
_TRIES = 5
_SKEW, _AGE = 3600.0, 86400.0 * 3660  # seconds from a prediction to its outcome


@dataclass(frozen=True)
class Joined:
    """`rows`: one a prediction (id, at, revision, model_version, score, prediction, event, value or null)."""

    rows: pl.DataFrame
    counts: dict[str, int]


class Rows(NamedTuple):
    """`unreadable`: files that are damaged, or were set aside for it."""

    rows: pl.DataFrame
    unreadable: int


def possible() -> pl.Expr:
    """Whether an outcome is of a prediction that was made before, and not an age ago."""
    seconds = pl.col("at") - millis_of_id(pl.col("id")) / 1000
    return seconds.is_between(-_SKEW, _AGE).fill_null(value=False)


def settled(outcomes: pl.DataFrame) -> pl.DataFrame:
    """One row an id: of the caller who told it first, what it told last; `changed`: it had told another value before."""
    if outcomes["id"].hash().n_unique() == outcomes.height:
        return outcomes.with_columns(changed=pl.lit(False))
    ordered = outcomes.sort("at", "caller", "value")  # files come in any order
    first = pl.col("caller").first().over("id")
    own = ordered.filter(pl.col("caller").eq_missing(first)).group_by("id", maintain_order=True)
    found = own.agg(pl.exclude("id").last(), changed=pl.col("value").n_unique() > 1)
    return found.select(*outcomes.columns, "changed")


def join_outcomes(model: RegisteredModel, since: datetime | None = None) -> Joined:
    """The prediction log with its outcomes; see `settled` for which one counts."""
    logged, unreadable = read_log(model, "predictions", since, _PREDICTIONS)
    told, lost = read_log(model, "outcomes", since, COLUMNS[OutcomeRecord])
    predictions = logged.unique("id")
    values = told.group_by("id").agg(received=pl.len(), distinct=pl.col("value").n_unique())
    values = values.join(settled(told).select("id", "value"), on="id")
    rows = predictions.join(values, on="id", how="left")
    matched = rows.filter(pl.col("value").is_not_null())
    counts = {
        "predictions": predictions.height,
        "matched": matched.height,
        "waiting": predictions.height - matched.height,
        "duplicate": int((matched["received"] - matched["distinct"]).sum()),
        "contradictory": int((matched["distinct"] > 1).sum()),
        "unknown": values.join(predictions, on="id", how="anti").height,
        "unreadable": unreadable + lost,
    }
    return Joined(rows.select(*_PREDICTIONS, "value").sort("id"), counts)


def read_log(model: RegisteredModel, kind: str, since: datetime | None, schema: Schema) -> Rows:
    """Segments and Parquet; a row that is in both, since it was being compacted, once. Raises UserError if files were
    compacted at every try."""
    prefix, store = f"{kind}/{model.name}", model.store
    after = f"{prefix}/{since:%Y-%m-%d/%H}" if since else None
    for _ in range(_TRIES):
        files = [read(store, key, schema) for key in listed(store, prefix, after)]
        present = [each for each in files if each]
        if len(present) == len(files):  # otherwise one was compacted since it was listed
            rows = pl.concat([pl.DataFrame(schema=schema), *(each.rows for each in present)])
            aside = listed(store, f"damaged/{prefix}", after and f"damaged/{after}")
            return Rows(rows.unique(maintain_order=True), sum(each.lost > 0 for each in present) + len(aside))
    raise UserError("log", prefix, "was compacted each time it was read; try again")
