from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

import msgspec
import polars as pl

from mlops import records
from mlops.errors import Fault
from mlops.store import Store

_PREDICTIONS = {"id": pl.String, "at": pl.Float64, "epoch": pl.Int64, "model": pl.String, "score": pl.Float64, "prediction": pl.Float64}
_OUTCOMES = {"id": pl.String, "value": pl.Float64, "at": pl.Float64}
_TRIES = 5


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
    """Segments and Parquet alike; a row that is in both, since it was being compacted, once."""
    decode = msgspec.json.Decoder(kind).decode
    for _ in range(_TRIES):
        contents = {key: store.get(key) for key in store.keys(prefix)}
        if any(content is None for content in contents.values()):
            continue  # compacted since it was listed
        frames = [pl.DataFrame(schema=schema)]
        for key, content in contents.items():
            assert content is not None
            if key.endswith(".parquet"):
                frames.append(pl.read_parquet(BytesIO(content), columns=list(schema)).cast(schema))
            else:
                found = [decode(raw) for raw in records.lines(content)]
                frames.append(pl.DataFrame({name: [getattr(record, name) for record in found] for name in schema}, schema=schema))
        return pl.concat(frames).unique(maintain_order=True)
    raise Fault("log", prefix, "was compacted each time it was read; try again")
