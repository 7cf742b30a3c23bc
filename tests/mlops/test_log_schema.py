import hashlib
import zlib
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops import log_schema
from mlops.log_schema import OutcomeRecord, PredictionRecord
from tests.ids import new_id


def scored(number: int = 0) -> PredictionRecord:
    features = {"size": 1.5, "color": "rot\ngrün", "member": True, "heat": None}
    return PredictionRecord(
        id=new_id(),
        at=1.0,
        revision=1,
        model_version="a" * 64,
        score=0.25,
        prediction=0,
        features=features,
        entity=f"c{number}",
    )


def read(segment: bytes) -> list[PredictionRecord]:
    return [msgspec.json.decode(body, type=PredictionRecord) for body in log_schema.lines(segment)]


def test_a_segment_is_read_as_written() -> None:
    rows = [scored(number) for number in range(100)]
    assert read(b"".join(map(log_schema.line, rows))) == rows
    outcome = OutcomeRecord(new_id(), 1.0, 2.0)
    [body] = log_schema.lines(log_schema.line(outcome))
    assert msgspec.json.decode(body, type=OutcomeRecord) == outcome


def test_a_record_is_one_line_whatever_it_contains() -> None:
    assert log_schema.line(scored()).count(b"\n") == 1


def test_every_whole_line_of_a_segment_cut_anywhere_is_read() -> None:
    rows = [scored(number) for number in range(3)]
    lines = [log_schema.line(row) for row in rows]
    whole = b"".join(lines)
    for cut in range(len(whole) + 1):
        expected = sum(
            cut >= sum(map(len, lines[: count + 1])) - 1 for count in range(3)
        )  # the last newline may be missing
        assert read(whole[:cut]) == rows[:expected]


def test_what_follows_a_torn_line_is_read() -> None:
    first, torn, last = scored(1), scored(2), scored(3)
    assert read(log_schema.line(first) + log_schema.line(torn)[:40] + b"\n" + log_schema.line(last)) == [first, last]


def test_a_line_with_any_bit_flipped_is_skipped() -> None:
    line = log_schema.line(scored())
    for position in range(len(line) - 1):
        for bit in range(8):
            rotten = line[:position] + bytes([line[position] ^ 1 << bit]) + line[position + 1 :]
            assert not [body for body in log_schema.lines(rotten) if body != line[9:-1]]


@pytest.mark.parametrize("junk", [b"", b"\n\n\n", b"x", b"\0" * 1000, b"00000000 ", b"\xff" * 50 + b"\n"])
def test_junk_contains_no_records(junk: bytes) -> None:
    assert [body for body in log_schema.lines(junk) if body] == []


@pytest.mark.parametrize(
    "changes",
    [
        {"at": -1.0}, {"at": 253370764800.0}, {"event": 1e300}, {"revision": 2**31}, {"revision": -1},
        {"score": float("nan")}, {"score": float("inf")}, {"challenger_score": 1e39}, {"arm": 2}, {"id": "x" * 65},
        {"entity": "x" * 1001}, {"caller": "x" * 201}, {"model_version": "x" * 65}, {"fault": "x" * 65},
        {"features": {"size": 1e39}}, {"features": {"color": "x" * 201}}, {"features": {"size": [1.0]}},
        {"features": {f"{number}": 1.0 for number in range(1001)}},
    ],
    ids=str,
)  # fmt: skip
def test_nothing_beyond_the_bounds_is_written_or_read(changes: dict[str, Any]) -> None:
    record = msgspec.structs.replace(scored(), **changes)
    with pytest.raises(msgspec.ValidationError):
        log_schema.line(record)
    body = msgspec.json.encode(record)
    foreign = b"%08x %s\n" % (zlib.crc32(body), body)
    assert log_schema.records(log_schema.line(scored()) + foreign, PredictionRecord)[1] == 1


_SHORT, _TEXT = st.text(max_size=64), st.text(max_size=log_schema.MAX_TEXT)
_MOMENT, _NUMBER = st.floats(0, 7e9), st.floats(-log_schema.FLOAT32, log_schema.FLOAT32)
_FEATURES = st.dictionaries(_TEXT, _TEXT | _NUMBER | st.booleans() | st.none(), max_size=20)
IN_BOUNDS = st.builds(
    PredictionRecord, _SHORT, _MOMENT, st.integers(0, 2**31 - 1), _SHORT, _NUMBER, _NUMBER, _FEATURES,
    entity=st.text(max_size=1000) | st.none(), event=_MOMENT | st.none(), caller=_TEXT | st.none(),
)  # fmt: skip


@given(IN_BOUNDS)
def test_a_line_of_whatever_is_in_bounds_is_read_as_written_and_is_not_long(record: PredictionRecord) -> None:
    line = log_schema.line(record)
    assert log_schema.records(line, PredictionRecord) == ([record], 0)
    assert len(line) < 10_000 + 2_600 * len(record.features)


def test_a_file_has_the_content_that_its_name_tells() -> None:
    content, name = b"whatever", hashlib.sha256(b"whatever").hexdigest()
    for suffix in ("log", "parquet"):
        key = f"predictions/m/2024-05-01/23/00000001-{name}.{suffix}"
        assert log_schema.intact(key, content)
        assert not log_schema.intact(key, content + b" ")
    assert log_schema.intact("predictions/m/2024-05-01/23/00000001-before.log", b"anything")


def test_a_segment_is_named_by_hour_and_revision() -> None:
    at = datetime(2024, 5, 1, 23, 59, tzinfo=UTC).timestamp()
    assert log_schema.segment_key("predictions", "m", at, 12, "abc") == "predictions/m/2024-05-01/23/00000012-abc.log"
