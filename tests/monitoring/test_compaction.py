from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest

from mlops import log_schema
from mlops.environment import Environment
from mlops.registered_model import RegisteredModel
from mlops.store import Store
from monitoring.compaction import compact, waiting
from monitoring.history import observed
from monitoring.outcomes import join_outcomes
from tests.synthetic import MODEL

HOUR = datetime(2024, 5, 1, 12, tzinfo=UTC)
LATER = HOUR + timedelta(hours=2)


def logged(store: Store, number: int, revision: int = 1, minute: int = 5, **features: Any) -> list[str]:
    """A segment of predictions and one of outcomes; returns the ids."""
    at = (HOUR + timedelta(minutes=minute)).timestamp()
    rows = [
        log_schema.PredictionRecord(
            log_schema.new_id(), at + i, revision, "a" * 64, i / 10, 1.0, {"size": float(i), "color": "red"} | features
        )
        for i in range(number)
    ]
    store.put(
        log_schema.segment_key("predictions", MODEL, at, revision, f"{minute}"), b"".join(map(log_schema.line, rows))
    )
    known = [log_schema.OutcomeRecord(row.id, 1.0, at + 60) for row in rows[: number // 2]]
    store.put(
        log_schema.segment_key("outcomes", MODEL, at, revision, f"{minute}"), b"".join(map(log_schema.line, known))
    )
    return [row.id for row in rows]


def compact_all(model: RegisteredModel, now: datetime) -> int:
    return sum(compact(model, kind, now) for kind in ("predictions", "outcomes"))


def test_readers_see_the_same_before_and_after_compaction(environment: Environment) -> None:
    model, store = environment.model(MODEL), environment.store
    logged(store, 10), logged(store, 4, revision=2, minute=40, member=True)
    before, seen = join_outcomes(model), observed(model, HOUR + timedelta(minutes=40))
    assert compact_all(model, LATER) == 14 + 7
    assert [key for key in store.keys("") if key.endswith(".log")] == []
    after = join_outcomes(model)
    assert after.rows.equals(before.rows)
    assert after.counts == before.counts
    assert observed(model, HOUR + timedelta(minutes=40)) == seen
    assert compact_all(model, LATER) == 0


def test_an_hour_that_is_not_over_stays_as_it_is(environment: Environment) -> None:
    logged(environment.store, 3)
    assert compact_all(environment.model(MODEL), HOUR + timedelta(minutes=62)) == 0
    assert len(waiting(environment.model(MODEL), "predictions", HOUR + timedelta(minutes=66))) == 1


def test_a_compaction_killed_before_it_deletes_counts_no_row_twice(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = environment.model(MODEL)
    logged(model.store, 10)
    before, seen = join_outcomes(model).counts, observed(model, HOUR + timedelta(minutes=5))

    def killed(self: Store, key: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "delete", killed)
        with pytest.raises(KeyboardInterrupt):
            compact(model, "predictions", LATER)
    assert join_outcomes(model).counts == before
    assert observed(model, HOUR + timedelta(minutes=5)) == seen
    compact_all(model, LATER)
    assert join_outcomes(model).counts == before


def test_a_late_segment_joins_its_hour(environment: Environment) -> None:
    logged(environment.store, 10)
    compact_all(environment.model(MODEL), LATER)
    logged(environment.store, 5, minute=50)
    compact_all(environment.model(MODEL), LATER)
    assert join_outcomes(environment.model(MODEL)).counts["predictions"] == 15


def test_parquet_keeps_features_by_name_and_type(environment: Environment) -> None:
    model, store = environment.model(MODEL), environment.store
    logged(store, 3, count=1, member=True)
    compact(model, "predictions", LATER)
    (key,) = store.keys("predictions")
    found = pl.read_parquet(store.get(key) or b"")
    assert {name: str(kind) for name, kind in found.schema.items() if name.startswith("feature.")} == {
        "feature.color": "String", "feature.count": "Float64", "feature.member": "Boolean", "feature.size": "Float64"
    }  # fmt: skip
