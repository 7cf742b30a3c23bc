"""Whoever may write to the bucket may write any bytes: none ends, stalls or misleads a process that reads the log."""

from __future__ import annotations

import os
import signal
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

import msgspec
import numpy as np
import polars as pl
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops import log_schema
from mlops.log_schema import OutcomeRecord, PredictionRecord
from monitoring import decoder
from monitoring.decoder import decode
from monitoring.frames import COLUMNS, parquet
from tests.ids import id_at

AT = 1_717_200_000.0
SCHEMA = COLUMNS[PredictionRecord] | {"feature.size": pl.Float64, "feature.color": pl.String}


def rows(n: int = 20) -> list[PredictionRecord]:
    features: dict[str, Any] = {"size": 1.5, "color": "red", "member": True}
    return [
        PredictionRecord(id_at(AT + i), AT + i, 1, "a" * 64, i / n, 1.0, features, f"c{i}", caller="k")
        for i in range(n)
    ]


def table(**changes: Any) -> pl.DataFrame:
    whole = decode(b"".join(map(log_schema.line, rows())), "predictions", False).rows
    return whole.with_columns(**changes)


def bomb() -> bytes:
    """A gigabyte of zeros in a few kilobytes."""
    chunk = pa.table({"score": pa.array(np.zeros(10_000_000))})
    content = BytesIO()
    with pq.ParquetWriter(content, chunk.schema) as writer:
        for _ in range(15):
            writer.write_table(chunk)
    return content.getvalue()


def nested() -> bytes:
    value: Any = 1.0
    for _ in range(60):
        value = [value]
    content = BytesIO()
    pq.write_table(pa.table({"id": ["x"], "feature.size": [value]}), content)
    return content.getvalue()


WHOLE: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "no Parquet": lambda: b"PAR1 no",
    "a half": lambda: parquet(table())[:900],
    "another kind": lambda: parquet(pl.DataFrame(schema=COLUMNS[OutcomeRecord])),
    "text for a moment": lambda: parquet(table(at=pl.lit("today"))),
    "a list for a score": lambda: parquet(table(score=pl.concat_list("score"))),
    "deep nesting": nested,
    "more than memory": bomb,
}
ROWS: dict[str, dict[str, Any]] = {
    "no moment": {"at": pl.lit(None, pl.Float64)},
    "the year 9999": {"event": pl.lit(253370764800.0)},
    "before 1970": {"at": pl.lit(-1.0)},
    "not finite": {"score": pl.lit(float("nan"))},
    "infinite": {"champion_score": pl.lit(float("inf"))},
    "beyond single precision": {"feature.size": pl.lit(1e300)},
    "a long text": {"entity": pl.lit("x" * 100_000)},
    "a long level": {"feature.color": pl.lit("x" * 100_000)},
    "a third arm": {"arm": pl.lit(2)},
    "a revision beyond all": {"revision": pl.lit(2**40)},
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_hostile_file_is_damaged_and_the_next_one_is_read(name: str) -> None:
    schema = {"score": pl.Float64} if name == "more than memory" else SCHEMA
    found = decode(WHOLE[name](), "predictions", True, schema)
    assert (found.rows.height, found.lost, found.rows.schema) == (0, 1, pl.Schema(schema))
    assert decode(parquet(table()), "predictions", True, SCHEMA).rows.height == 20


@pytest.mark.parametrize("name", ROWS)
def test_rows_that_are_no_records_are_left_out_and_counted(name: str) -> None:
    good = table()
    bad = good.with_columns(**{column: value.cast(good[column].dtype) for column, value in ROWS[name].items()})
    found = decode(parquet(pl.concat([good, bad.head(7)])), "predictions", True, SCHEMA)
    assert (found.rows.height, found.lost) == (20, 7)
    assert decode(parquet(pl.concat([good, bad.head(7)])), "predictions", True).lost == 7


def test_what_was_not_logged_before_is_null_and_all_columns_are_as_they_were() -> None:
    old = table().drop("caller", "feature.color")
    found = decode(parquet(old), "predictions", True, SCHEMA)
    assert (found.lost, found.rows["caller"].null_count(), found.rows["feature.color"].null_count()) == (0, 20, 20)
    now = table()
    assert decode(parquet(now), "predictions", True).rows.select(now.columns).equals(now)


def test_a_parquet_with_any_bit_flipped_ends_no_process() -> None:
    content, random = parquet(table()), np.random.default_rng(0)
    for _ in range(150):
        position, bit = int(random.integers(len(content))), int(random.integers(8))
        rotten = content[:position] + bytes([content[position] ^ 1 << bit]) + content[position + 1 :]
        found = decode(rotten, "predictions", True, SCHEMA)
        assert found.rows.schema == pl.Schema(SCHEMA)
    assert decode(content, "predictions", True, SCHEMA).lost == 0


def test_a_child_that_dies_of_something_else_costs_no_file() -> None:
    content = parquet(table())
    decode(content, "predictions", True, SCHEMA)
    assert decoder._child
    os.kill(decoder._child._process.pid, signal.SIGKILL)
    assert decode(content, "predictions", True, SCHEMA).lost == 0


def test_the_child_is_told_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    monkeypatch.setattr(decoder, "_child", None)
    decode(b"", "predictions", True, SCHEMA)
    assert decoder._child
    assert "AWS_SECRET_ACCESS_KEY" not in psutil.Process(decoder._child._process.pid).environ()


def lined(body: bytes) -> bytes:
    return b"%08x %s\n" % (zlib.crc32(body), body)


FOREIGN = [
    b"{}", b"[]", b"null", b"\xff", b'{"id":"x","value":1,"at":2}', b"[" * 100_000, b'{"a":' * 50_000,
    msgspec.json.encode(rows(1)[0]).replace(b'"size":1.5', b'"size":1e400'),
    msgspec.json.encode(rows(1)[0]).replace(b'"size":1.5', b'"size":{"x":[1]}'),
    msgspec.json.encode(rows(1)[0]).replace(b'"score":0.0', b'"score":null'),
    msgspec.json.encode(rows(1)[0]).replace(b'"c0"', b'"%s"' % (b"x" * 2000)),
]  # fmt: skip


@pytest.mark.parametrize("body", FOREIGN, ids=range(len(FOREIGN)))
def test_a_foreign_line_with_a_right_checksum_is_left_out_and_counted(body: bytes) -> None:
    ours = list(map(log_schema.line, rows()))
    found = decode(b"".join([*ours[:3], lined(body), *ours[3:]]), "predictions", False, SCHEMA)
    assert (found.rows.height, found.lost) == (20, 1)


JSON = st.recursive(
    st.none() | st.floats() | st.text(max_size=5),
    lambda each: st.lists(each) | st.dictionaries(st.text(max_size=5), each),
)


@given(st.lists(st.binary(max_size=60) | JSON.map(lambda each: lined(msgspec.json.encode(each)))))
def test_records_are_read_from_among_anything(parts: list[bytes]) -> None:
    whole = list(map(log_schema.line, rows(len(parts))))
    mixed = b"".join(b"\n" + part + b"\n" + line for part, line in zip(parts, whole, strict=True))
    assert [each.id for each in log_schema.records(mixed, PredictionRecord)[0]] == [each.id for each in rows_of(whole)]


def rows_of(lines: list[bytes]) -> list[Any]:
    return log_schema.records(b"".join(lines), PredictionRecord)[0]
