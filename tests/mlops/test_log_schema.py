import time
import uuid
from datetime import UTC, datetime
from itertools import pairwise

import msgspec
import pytest

from mlops import log_schema
from mlops.log_schema import OutcomeRecord, PredictionRecord


def scored(number: int = 0) -> PredictionRecord:
    features = {"size": 1.5, "color": "rot\ngrün", "member": True, "heat": None}
    return PredictionRecord(
        id=log_schema.new_id(),
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
    outcome = OutcomeRecord(log_schema.new_id(), 1.0, 2.0)
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


def test_ids_are_distinct_uuids_of_version_7_and_sort_by_time() -> None:
    made = []
    for _ in range(5):
        made.append([log_schema.new_id() for _ in range(200)])
        time.sleep(0.002)
    flat = [each for batch in made for each in batch]
    assert len(set(flat)) == 1000
    for text in flat:
        parsed = uuid.UUID(text)
        assert (str(parsed), parsed.version, parsed.variant) == (text, 7, uuid.RFC_4122)
    assert all(max(earlier) < min(later) for earlier, later in pairwise(made))


def test_an_id_says_when_it_was_made() -> None:
    before = time.time()
    made = log_schema.id_time(log_schema.new_id())
    assert made is not None
    assert before - 0.001 <= made <= time.time()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x" * 36,
        "e4f8f8f4-b269-42dc-bd5f-b4f51615b858",  # a UUIDv4
        "01a207ba-62be-7f15-901f-f42787e9d09",  # cut short
        "01a207ba62be7f579394e5d6f9b757a6",  # without hyphens
        "-" * 36,
    ],
)
def test_an_id_that_is_not_ours_has_no_time(text: str) -> None:
    assert log_schema.id_time(text) is None


def test_a_segment_is_named_by_hour_and_revision() -> None:
    at = datetime(2024, 5, 1, 23, 59, tzinfo=UTC).timestamp()
    assert log_schema.segment_key("predictions", "m", at, 12, "abc") == "predictions/m/2024-05-01/23/00000012-abc.log"
