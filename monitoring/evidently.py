"""The drift report of Evidently, for who has it installed: rows of the window against those of the weeks before."""

from datetime import timedelta
from pathlib import Path

import polars as pl

from mlops.errors import UserError
from mlops.log_schema import PredictionRecord
from mlops.registered_model import RegisteredModel
from mlops.releases import now
from monitoring.frames import COLUMNS, features
from monitoring.partitions import Partitions, arrival
from monitoring.sums import Measures
from monitoring.watch import Watched

_ROWS = 50_000  # of each side: Evidently's tests take all in memory
_WEEKS = timedelta(days=28)


def write(model: RegisteredModel, file: Path, watched: Watched) -> Path:
    try:
        from evidently import Dataset, Report  # ty: ignore[import-not-found]
        from evidently.presets import DataDriftPreset  # ty: ignore[import-not-found]
    except ImportError:
        hint = "is not installed; into this environment: uv pip install 'evidently>=0.7'"
        raise UserError("report", "evidently", hint) from None
    if not watched.drift.days:
        raise UserError("window", "", f"has no rows to report on: {watched.drift.why}")
    rows, first = _rows(model, watched), watched.drift.days[0]
    before, after = (rows.filter(pl.col("day") < first), rows.filter(pl.col("day") >= first))
    if not before.height:
        raise UserError("window", f"{first}", "has no rows before it: Evidently compares two samples")
    samples = [part.sample(min(part.height, _ROWS), seed=0).drop("day").to_pandas() for part in (before, after)]
    reference, current = map(Dataset.from_pandas, samples)
    Report([DataDriftPreset()]).run(current, reference).save_html(str(file))
    return file


def _rows(model: RegisteredModel, watched: Watched) -> pl.DataFrame:
    contract, first, last = watched.contract, watched.drift.days[0] - _WEEKS, watched.drift.days[-1]
    day = Measures(contract).day
    kept = features(contract, contract.logged["keep"])
    schema = {name: COLUMNS[PredictionRecord][name] for name in ("id", "at", "event", "score")} | kept

    def chosen(rows: pl.DataFrame, _: pl.DataFrame) -> pl.DataFrame:
        rows = rows.with_columns(day=day).filter(pl.col("day").is_between(first, last))
        return rows.select("day", "score", *(pl.col(name).alias(name.removeprefix("feature.")) for name in kept))

    return pl.concat(Partitions(model, schema, chosen).look(arrival(contract, first), now()))
