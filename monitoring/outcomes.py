from dataclasses import dataclass
from datetime import datetime
from typing import Any

import polars as pl

from mlops.errors import UserError
from mlops.log_schema import OutcomeRecord, PredictionRecord
from mlops.registered_model import RegisteredModel
from monitoring.frames import COLUMNS, Kind, read

_NAMES = ("id", "at", "revision", "model_version", "score", "prediction", "event")
_PREDICTIONS = {name: COLUMNS[PredictionRecord][name] for name in _NAMES}
_TRIES = 5


@dataclass(frozen=True)
class Joined:
    """`rows`: one a prediction (id, at, revision, model_version, score, prediction, event, value or null)."""

    rows: pl.DataFrame
    counts: dict[str, int]


def join_outcomes(model: RegisteredModel, since: datetime | None = None) -> Joined:
    """The prediction log with its outcomes. The last outcome received for a prediction counts."""
    predictions = read_log(model, "predictions", since, PredictionRecord, _PREDICTIONS).unique("id")
    outcomes = read_log(model, "outcomes", since, OutcomeRecord, COLUMNS[OutcomeRecord]).sort("at")
    value = pl.col("value")
    summed = {"value": value.last(), "received": pl.len(), "distinct": value.n_unique()}
    values = outcomes.group_by("id", maintain_order=True).agg(**summed)
    rows = predictions.join(values, on="id", how="left")
    matched = rows.filter(pl.col("value").is_not_null())
    counts = {
        "predictions": predictions.height,
        "matched": matched.height,
        "waiting": predictions.height - matched.height,
        "duplicate": int((matched["received"] - matched["distinct"]).sum()),
        "contradictory": int((matched["distinct"] > 1).sum()),
        "unknown": values.join(predictions, on="id", how="anti").height,
    }
    return Joined(rows.select(*_PREDICTIONS, "value").sort("id"), counts)


def read_log(
    model: RegisteredModel, kind: str, since: datetime | None, record: Kind, schema: dict[str, Any]
) -> pl.DataFrame:
    """Segments and Parquet; a row that is in both, since it was being compacted, once."""
    prefix, store = f"{kind}/{model.name}", model.store
    after = f"{prefix}/{since:%Y-%m-%d/%H}" if since else None
    for _ in range(_TRIES):
        frames = [read(store, key, record, schema) for key in store.keys(prefix, after)]
        present = [frame for frame in frames if frame is not None]
        if len(present) == len(frames):  # otherwise one was compacted since it was listed
            return pl.concat([pl.DataFrame(schema=schema), *present]).unique(maintain_order=True)
    raise UserError("log", prefix, "was compacted each time it was read; try again")
