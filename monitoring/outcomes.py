from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import polars as pl

from mlops import log_schema
from mlops.errors import UserError
from mlops.registered_model import RegisteredModel
from mlops.store import Store
from monitoring.frames import COLUMNS, Kind, read

_PREDICTIONS = {
    name: COLUMNS[log_schema.PredictionRecord][name]
    for name in ("id", "at", "revision", "model_version", "score", "prediction", "event")
}
_TRIES = 5


@dataclass(frozen=True)
class Joined:
    """`rows`: one a prediction (id, at, revision, model_version, score, prediction, event, value or null)."""

    rows: pl.DataFrame
    counts: dict[str, int]


def join_outcomes(model: RegisteredModel, since: datetime | None = None) -> Joined:
    """The prediction log with its outcomes. The last outcome received for a prediction counts."""
    predictions = _read(
        model.store, f"predictions/{model.name}", since, log_schema.PredictionRecord, _PREDICTIONS
    ).unique("id")
    outcomes = _read(
        model.store, f"outcomes/{model.name}", since, log_schema.OutcomeRecord, COLUMNS[log_schema.OutcomeRecord]
    ).sort("at")
    values = outcomes.group_by("id", maintain_order=True).agg(
        value=pl.col("value").last(), received=pl.len(), distinct=pl.col("value").n_unique()
    )
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


def _read(store: Store, prefix: str, since: datetime | None, kind: Kind, schema: dict[str, Any]) -> pl.DataFrame:
    """Segments and Parquet; a row that is in both, since it was being compacted, once."""
    for _ in range(_TRIES):
        frames = [
            read(store, key, kind, schema)
            for key in store.keys(prefix, after=f"{prefix}/{since:%Y-%m-%d/%H}" if since else None)
        ]
        if all(frame is not None for frame in frames):  # otherwise compacted since it was listed
            return pl.concat([pl.DataFrame(schema=schema), *(frame for frame in frames if frame is not None)]).unique(
                maintain_order=True
            )
    raise UserError("log", prefix, "was compacted each time it was read; try again")
