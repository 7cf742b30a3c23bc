"""A moment is the same to training, API, log, judge, replay and the command."""

import random
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import msgspec
import polars as pl
import pytest

from mlops.contract import Contract
from mlops.log_schema import PredictionRecord
from mlops.moments import moment, shown
from mlops.rows import RowSchema
from monitoring.frames import COLUMNS
from monitoring.sums import Measures
from training import data
from training.replay import request_rows
from training.validation import typed

ZONES = ["Europe/Paris", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "UTC"]
CHANGES = [
    datetime(2024, 3, 31, 2),
    datetime(2024, 10, 27, 2),
    datetime(2024, 3, 10, 2),
    datetime(2024, 11, 3, 1),
    datetime(2024, 4, 7, 2),
]


def contract(zone: str) -> Contract:
    return Contract.model_validate({
        "model": "m", "task": "binary", "target": "y", "time": {"column": "at", "zone": zone}, "features": {"size": {"type": "number"}},
    })  # fmt: skip


def written() -> list[str]:
    """200 moments around clock changes: naive, with a zone, dates."""
    chosen = random.Random(0)
    texts = []
    for number in range(200):
        at = chosen.choice(CHANGES) + timedelta(minutes=chosen.randint(-180, 180))
        zone = chosen.choice(["Z", "+02:00", "-05:30", ""])
        texts.append(f"{at.date()}" if number % 10 == 0 else f"{at:%Y-%m-%dT%H:%M:%S}{zone if number % 3 else ''}")
    return texts


@pytest.mark.parametrize("zone", ZONES)
def test_every_reader_agrees_on_200_moments(zone: str) -> None:
    made, texts = contract(zone), written()
    rows = pl.DataFrame({"size": [1.0] * 200, "at": texts, "y": [0, 1] * 100})
    schema, (read, faults) = RowSchema(made, {}), typed(rows, made)
    assert faults.null_count() == 200
    by_training = [at.timestamp() for at in read["at"]]
    assert by_training == [moment(text, zone).timestamp() for text in texts]
    by_api = [made.event_of(schema.row({"size": 1, "at": text})) for text in texts]
    by_replay = [
        made.event_of(schema.row(row)) for row in msgspec.json.decode(msgspec.json.encode(request_rows(read, made)))
    ]
    assert by_training == by_api == by_replay
    log = pl.DataFrame(
        {"event": by_api, "at": [0.0] * 200}, schema={name: COLUMNS[PredictionRecord][name] for name in ("event", "at")}
    )
    by_judge = log.select(day=Measures(made).day)["day"].cast(pl.Int32).to_list()
    assert by_judge == data.days(read, made).tolist()
    for text, at, day in zip(texts, read["at"], by_judge, strict=True):
        assert moment(shown(at)) == at.replace(microsecond=0), "what is shown can be pasted back"
        if "T" not in text:
            assert date(1970, 1, 1) + timedelta(days=day) == date.fromisoformat(text)


@pytest.mark.parametrize("zone", ZONES)
def test_columns_of_dates_and_of_local_times_are_read_like_their_texts(zone: str) -> None:
    naive = [at + timedelta(minutes=minutes) for at in CHANGES for minutes in range(-120, 120, 7)]
    zoned = [at.replace(tzinfo=ZoneInfo(zone)) for at in naive]
    columns = {
        "local": (naive, naive),
        "zoned": (zoned, [at.astimezone(UTC) for at in zoned]),
        "dates": (dates := [at.date() for at in naive], dates),
    }
    for values, column in columns.values():
        read, _ = typed(pl.DataFrame({"at": column}), contract(zone))
        assert [at.timestamp() for at in read["at"]] == [moment(value, zone).timestamp() for value in values]


@pytest.mark.parametrize(
    "text",
    [
        "noon",
        "05/01/2024",
        "2024-02-30",
        "1969-12-31",
        "2200-01-01",
        "1970-01-01",
        "2199-12-31T23:00:00-02:00",
        "9999-12-31T00:00:00Z",
        "",
    ],
)
def test_what_is_no_moment_says_so(text: str) -> None:
    with pytest.raises(ValueError, match=r"ISO 8601|1970 and 2200"):
        moment(text, "Europe/Paris")
