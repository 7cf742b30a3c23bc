from collections import Counter
from datetime import UTC, datetime, timedelta

import polars as pl

from mlops.log_schema import PredictionRecord
from mlops.registered_model import RegisteredModel
from monitoring.files import listed, read
from monitoring.frames import COLUMNS

_COLUMNS = {name: COLUMNS[PredictionRecord][name] for name in ("id", "at", "model_version", "revision")}
_AROUND = timedelta(minutes=1)


def observed(model: RegisteredModel, at: datetime) -> Counter[tuple[str, int]]:
    """(model version, revision) → rows answered in the second before and after `at`, or else by the nearest answer within
    a minute; from the prediction log."""
    hours = sorted({f"{(at + shift).astimezone(UTC):%Y-%m-%d/%H}" for shift in (-_AROUND, _AROUND)})
    keys = [key for hour in hours for key in listed(model.store, f"predictions/{model.name}/{hour}")]
    files = [read(model.store, key, _COLUMNS) for key in keys]
    rows = pl.concat([pl.DataFrame(schema=_COLUMNS), *(each.rows for each in files if each)]).unique("id")
    distance = (pl.col("at") - at.timestamp()).abs()
    near = rows.filter(distance <= _AROUND.total_seconds())
    near = near.filter(distance <= pl.max_horizontal(distance.min(), 1.0))
    return Counter(near.select("model_version", "revision").iter_rows())
