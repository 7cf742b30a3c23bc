from __future__ import annotations

from dataclasses import dataclass

import msgspec
import polars as pl

from mlops import records
from mlops.store import Store

_PREDICTIONS = {"id": pl.String, "at": pl.Float64, "epoch": pl.Int64, "model": pl.String, "score": pl.Float64, "prediction": pl.Float64}
_OUTCOMES = {"id": pl.String, "value": pl.Float64, "at": pl.Float64}


@dataclass(frozen=True)
class Joined:
    """`rows`: one a prediction (id, at, epoch, model, score, prediction, value or null); `counts`: what was met."""

    rows: pl.DataFrame
    counts: dict[str, int]


def joined(store: Store, model: str) -> Joined:
    """The prediction log with its outcomes. Of several outcomes for one prediction the last received counts."""
    predictions = _read(store, f"predictions/{model}", records.Scored, _PREDICTIONS).unique("id")
    outcomes = _read(store, f"outcomes/{model}", records.Outcome, _OUTCOMES).sort("at")
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


def _read(store: Store, prefix: str, kind: type[records.Scored] | type[records.Outcome], schema: dict) -> pl.DataFrame:
    decode = msgspec.json.Decoder(kind).decode
    found = [decode(raw) for key in store.keys(prefix) for raw in records.lines(store.get(key) or b"")]
    return pl.DataFrame({name: [getattr(record, name) for record in found] for name in schema}, schema=schema)
