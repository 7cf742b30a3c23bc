from __future__ import annotations

import secrets
from dataclasses import replace
from pathlib import Path

import msgspec
import polars as pl
import pytest

from mlops import log_schema
from mlops.keys import Keyring
from mlops.registered_model import RegisteredModel
from mlops.store import Store
from monitoring.frames import COLUMNS
from monitoring.outcomes import join_outcomes, settled
from tests.ids import new_id

AT = 1_700_000_000.0


@pytest.fixture
def model(tmp_path: Path) -> RegisteredModel:
    return RegisteredModel("m", "local", Store(str(tmp_path / "bucket")), Keyring(tmp_path / "keyring.json"))


def scored(score: float = 0.5) -> log_schema.PredictionRecord:
    return log_schema.PredictionRecord(new_id(), AT, 1, "d" * 64, score, int(score >= 0.5), {"size": 1.0}, "c1")


def write(
    model: RegisteredModel, kind: str, *found: log_schema.PredictionRecord | log_schema.OutcomeRecord, torn: bytes = b""
) -> None:
    key = log_schema.segment_key(kind, model.name, AT, 1 if kind == "predictions" else 0, secrets.token_hex(4))
    model.store.put(key, b"".join(map(log_schema.line, found)) + torn)


def test_a_prediction_is_joined_with_its_outcome_and_waits_without_one(model: RegisteredModel) -> None:
    first, second = scored(0.9), scored(0.1)
    write(model, "predictions", first, second)
    write(model, "outcomes", log_schema.OutcomeRecord(first.id, 1.0, AT + 60))
    found = join_outcomes(model)
    assert dict(found.rows.select("id", "value").iter_rows()) == {first.id: 1.0, second.id: None}
    assert dict(found.rows.select("id", "score").iter_rows()) == {first.id: 0.9, second.id: 0.1}
    assert found.counts == {
        "predictions": 2,
        "matched": 1,
        "waiting": 1,
        "duplicate": 0,
        "contradictory": 0,
        "unknown": 0,
        "unreadable": 0,
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
    model: RegisteredModel, values: list[float], value: float, counts: dict[str, int]
) -> None:
    prediction = scored()
    write(model, "predictions", prediction)
    outcomes = [log_schema.OutcomeRecord(prediction.id, each, AT + position) for position, each in enumerate(values)]
    for outcome in reversed(outcomes):  # segments of several replicas arrive in any order
        write(model, "outcomes", outcome)
    found = join_outcomes(model)
    assert found.rows["value"].to_list() == [value]
    assert {name: found.counts[name] for name in counts} == counts


@pytest.mark.parametrize("split", [False, True], ids=["one file", "a file each"])
def test_the_first_caller_tells_the_outcome_and_only_the_same_corrects_it(model: RegisteredModel, split: bool) -> None:
    prediction = scored()
    write(model, "predictions", prediction)
    told = [("shop", 0.0), ("stranger", 1.0), ("shop", 0.5), ("stranger", 9.0), (None, 8.0)]
    outcomes = [
        log_schema.OutcomeRecord(prediction.id, value, AT + second, caller)
        for second, (caller, value) in enumerate(told)
    ]
    for each in [[one] for one in outcomes] if split else [outcomes[::-1]]:
        write(model, "outcomes", *each)
    found = join_outcomes(model)
    assert found.rows["value"].to_list() == [0.5]
    assert (found.counts["contradictory"], found.counts["matched"]) == (1, 1)
    rows = list(map(msgspec.structs.astuple, outcomes))
    for some, value, changed in ((rows, 0.5, True), (rows[:2], 0.0, False), (rows[1:2] + rows[3:], 9.0, True)):
        table = pl.DataFrame(some, COLUMNS[log_schema.OutcomeRecord], orient="row")
        assert settled(table).select("value", "changed").rows() == [(value, changed)]


def test_an_outcome_of_no_logged_prediction_is_counted_and_adds_no_row(model: RegisteredModel) -> None:
    write(model, "predictions", scored())
    write(model, "outcomes", log_schema.OutcomeRecord(new_id(), 1.0, AT))
    found = join_outcomes(model)
    assert (found.rows.height, found.counts["unknown"], found.counts["waiting"]) == (1, 1, 1)


def test_a_segment_that_arrived_twice_counts_once(model: RegisteredModel) -> None:
    prediction = scored()
    write(model, "predictions", prediction)
    write(model, "predictions", prediction)
    assert join_outcomes(model).counts["predictions"] == 1


def test_a_torn_or_changed_line_is_skipped_and_the_rest_is_read(model: RegisteredModel) -> None:
    good, changed, torn = scored(), scored(), scored()
    line = log_schema.line(changed).replace(b'"score":0.5', b'"score":0.9')
    write(model, "predictions", good, torn=line + log_schema.line(torn)[:-15])
    assert join_outcomes(model).rows["id"].to_list() == [good.id]


def test_an_empty_log_is_an_empty_table_with_its_columns(model: RegisteredModel) -> None:
    found = join_outcomes(model)
    assert found.rows.is_empty()
    assert {"id", "model_version", "score", "value"} <= set(found.rows.columns)
    assert set(found.counts.values()) == {0}


def test_another_models_log_is_another_log(model: RegisteredModel) -> None:
    write(model, "predictions", scored())
    assert join_outcomes(replace(model, name="other")).counts["predictions"] == 0
