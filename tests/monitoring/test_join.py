from __future__ import annotations

import secrets

import pytest

from mlops import log_schema
from mlops.store import Store

AT = 1_700_000_000.0


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(str(tmp_path / "bucket"))


def scored(score: float = 0.5) -> log_schema.PredictionRecord:
    return log_schema.PredictionRecord(
        log_schema.new_id(), AT, 1, "d" * 64, score, int(score >= 0.5), {"size": 1.0}, "c1"
    )


def write(
    store: Store, kind: str, *found: log_schema.PredictionRecord | log_schema.OutcomeRecord, torn: bytes = b""
) -> None:
    key = log_schema.segment_key(kind, "m", AT, 1 if kind == "predictions" else 0, secrets.token_hex(4))
    store.put(key, b"".join(map(log_schema.line, found)) + torn)


def test_a_prediction_is_joined_with_its_outcome_and_waits_where_there_is_none(store: Store) -> None:
    first, second = scored(0.9), scored(0.1)
    write(store, "predictions", first, second)
    write(store, "outcomes", log_schema.OutcomeRecord(first.id, 1.0, AT + 60))
    found = joined(store, "m")
    assert dict(found.rows.select("id", "value").iter_rows()) == {first.id: 1.0, second.id: None}
    assert dict(found.rows.select("id", "score").iter_rows()) == {first.id: 0.9, second.id: 0.1}
    assert found.counts == {
        "predictions": 2,
        "matched": 1,
        "waiting": 1,
        "duplicate": 0,
        "contradictory": 0,
        "unknown": 0,
    }


@pytest.mark.parametrize(
    ("values", "value", "counts"),
    [
        ([1.0, 1.0], 1.0, {"duplicate": 1, "contradictory": 0}),
        ([1.0, 1.0, 1.0], 1.0, {"duplicate": 2, "contradictory": 0}),
        ([1.0, 0.0], 0.0, {"duplicate": 0, "contradictory": 1}),
        ([0.0, 1.0], 1.0, {"duplicate": 0, "contradictory": 1}),
    ],
)
def test_of_several_outcomes_the_last_received_counts_and_the_others_are_counted(
    store: Store, values: list[float], value: float, counts: dict[str, int]
) -> None:
    prediction = scored()
    write(store, "predictions", prediction)
    outcomes = [log_schema.OutcomeRecord(prediction.id, each, AT + position) for position, each in enumerate(values)]
    for outcome in reversed(outcomes):  # segments of several replicas arrive in any order
        write(store, "outcomes", outcome)
    found = joined(store, "m")
    assert found.rows["value"].to_list() == [value]
    assert {name: found.counts[name] for name in counts} == counts


def test_an_outcome_of_no_logged_prediction_is_counted_and_adds_no_row(store: Store) -> None:
    write(store, "predictions", scored())
    write(store, "outcomes", log_schema.OutcomeRecord(log_schema.new_id(), 1.0, AT))
    found = joined(store, "m")
    assert (found.rows.height, found.counts["unknown"], found.counts["waiting"]) == (1, 1, 1)


def test_a_segment_that_arrived_twice_counts_once(store: Store) -> None:
    prediction = scored()
    write(store, "predictions", prediction)
    write(store, "predictions", prediction)
    assert joined(store, "m").counts["predictions"] == 1


def test_a_torn_or_rotten_line_is_passed_over_and_the_rest_is_read(store: Store) -> None:
    good, rotten, torn = scored(), scored(), scored()
    line = log_schema.line(rotten).replace(b'"score":0.5', b'"score":0.9')
    write(store, "predictions", good, torn=line + log_schema.line(torn)[:-15])
    assert joined(store, "m").rows["id"].to_list() == [good.id]


def test_an_empty_log_is_an_empty_table_with_its_columns(store: Store) -> None:
    found = joined(store, "m")
    assert found.rows.is_empty()
    assert {"id", "model", "score", "value"} <= set(found.rows.columns)
    assert set(found.counts.values()) == {0}


def test_another_models_log_is_another_log(store: Store) -> None:
    write(store, "predictions", scored())
    assert joined(store, "other").counts["predictions"] == 0
