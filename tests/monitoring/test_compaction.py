from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest

from mlops import log_schema
from mlops.environment import Environment
from mlops.errors import VerificationError
from mlops.registered_model import RegisteredModel
from mlops.store import Store
from monitoring.compaction import Compacted, compact, waiting
from monitoring.files import put as put_file
from monitoring.history import observed
from monitoring.outcomes import join_outcomes
from monitoring.partitions import Partitions
from monitoring.retention import expire, forget
from tests.ids import id_at
from tests.live_log import put
from tests.synthetic import MODEL

HOUR = datetime(2024, 5, 1, 12, tzinfo=UTC)
LATER = HOUR + timedelta(hours=2)


def logged(store: Store, number: int, revision: int = 1, minute: int = 5, **features: Any) -> list[str]:
    """A segment of predictions and one of outcomes; returns the ids."""
    at = (HOUR + timedelta(minutes=minute)).timestamp()
    rows = [
        log_schema.PredictionRecord(
            id_at(at), at + i, revision, "a" * 64, i / 10, 1.0, {"size": float(i), "color": "red"} | features
        )
        for i in range(number)
    ]
    put(store, "predictions", MODEL, at, revision, *rows)
    known = [log_schema.OutcomeRecord(row.id, 1.0, at + 60) for row in rows[: number // 2]]
    put(store, "outcomes", MODEL, at, 0, *known)
    return [row.id for row in rows]


def compact_all(model: RegisteredModel, now: datetime) -> int:
    return sum(compact(model, kind, now).rows for kind in ("predictions", "outcomes"))


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


def killed_before_it_deletes(model: RegisteredModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(self: Store, key: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "delete", killed)
        with pytest.raises(KeyboardInterrupt):
            compact(model, "predictions", LATER)


def test_a_compaction_killed_before_it_deletes_counts_no_row_twice(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = environment.model(MODEL)
    logged(model.store, 10)
    before, seen = join_outcomes(model).counts, observed(model, HOUR + timedelta(minutes=5))

    killed_before_it_deletes(model, monkeypatch)
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


def rot(store: Store, key: str) -> None:
    """A bit in its middle: which file comes first, and how long that is, is a matter of its digest."""
    content = store.get(key) or b""
    position = len(content) // 2
    store.put(key, content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])


def look(model: RegisteredModel) -> tuple[Partitions[pl.DataFrame], pl.DataFrame]:
    schema = {"id": pl.String, "at": pl.Float64}
    partitions = Partitions(model, schema, lambda rows, told: rows.join(told, on="id", how="left"))
    found = partitions.look(HOUR - timedelta(days=1), LATER)
    return partitions, pl.concat(found) if found else pl.DataFrame(schema=schema)


@pytest.mark.parametrize("kind", ["predictions", "outcomes"])
@pytest.mark.parametrize("when", ["a segment", "Parquet"])
def test_a_changed_file_is_set_aside_and_counts_as_unreadable_until_a_person_removes_it(
    environment: Environment, kind: str, when: str
) -> None:
    model, store = environment.model(MODEL), environment.store
    logged(store, 10), logged(store, 4, minute=40)
    if when == "Parquet":
        compact_all(model, LATER)
        logged(store, 4, minute=41)
        compact_all(model, LATER)
    key = store.keys(f"{kind}/{MODEL}")[0]
    rot(store, key)
    rotten = store.get(key)
    partitions, seen = look(model)
    assert partitions.unreadable == 1
    assert 0 < seen.height < 18 or kind == "outcomes"
    assert join_outcomes(model).counts["unreadable"] == 1
    assert compact(model, kind, LATER).damaged == 1
    assert (store.get(f"damaged/{key}"), store.get(key)) == (rotten, None)
    assert [each for each in store.keys(kind) if each.endswith(".log")] == []
    for look_again in (partitions.look(HOUR - timedelta(days=1), LATER), look(model)[1]):
        assert look_again is not None
    assert (partitions.unreadable, look(model)[0].unreadable, compact(model, kind, LATER)) == (1, 1, Compacted())
    assert partitions.look(HOUR + timedelta(days=1), LATER) == []
    assert partitions.unreadable == 0, "it is before the window"
    store.delete(f"damaged/{key}")
    assert look(model)[0].unreadable == join_outcomes(model).counts["unreadable"] == 0


def test_foreign_lines_are_counted_the_others_kept_and_the_file_is_set_aside(environment: Environment) -> None:
    model, store = environment.model(MODEL), environment.store
    ours = [log_schema.line(outcome(HOUR, 1.0)) for _ in range(5)]
    content = b"".join([*ours, b"00000000 {}\n", ours[0].replace(b"value", b"Value")])
    key = put_file(store, f"outcomes/{MODEL}/2024-05-01/12/00000000", content, "log")
    assert look(model)[0].unreadable == 1
    assert compact(model, "outcomes", LATER) == Compacted(5, 2, 1)
    assert store.get(f"damaged/{key}") == content
    assert join_outcomes(model).counts["unknown"] == 5


def test_a_set_aside_that_is_killed_between_its_two_steps_is_repeated(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, store = environment.model(MODEL), environment.store
    logged(store, 10)
    [key] = store.keys("predictions")
    rot(store, key)

    killed_before_it_deletes(model, monkeypatch)
    assert compact(model, "predictions", LATER).damaged == 1
    assert (store.get(key), look(model)[0].unreadable) == (None, 1)


def test_what_the_bucket_does_not_hand_out_is_counted_and_passed_over(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, store, get = environment.model(MODEL), environment.store, Store.get
    logged(store, 10), logged(store, 4, minute=40)
    archived = store.keys("predictions")[0]

    def refused(self: Store, key: str, limit: int | None = None) -> bytes | None:
        if key == archived:
            raise VerificationError("unreadable", key, "InvalidObjectState", "cannot be read")
        return get(self, key, limit)

    monkeypatch.setattr(Store, "get", refused)
    for _ in range(2):
        compact_all(model, LATER)
        assert archived in store.keys("predictions")
        assert look(model)[0].unreadable == join_outcomes(model).counts["unreadable"] == 1
    monkeypatch.undo()
    compact_all(model, LATER)
    assert look(model)[0].unreadable == 0
    assert look(model)[1]["id"].n_unique() == 14


@pytest.mark.parametrize("stray", ["x.log", "2024-05-01/x/00000001-a.log", "2024-05-01/12/README.log", "2024-05-01"])
def test_strays_are_no_files_of_the_log(environment: Environment, stray: str) -> None:
    model, store = environment.model(MODEL), environment.store
    logged(store, 10)
    for kind in ("predictions", "outcomes"):
        if stray != "2024-05-01":
            store.put(f"{kind}/{MODEL}/{stray}", b"anything")
        store.put(f"{kind}/{MODEL}/{stray}-2", b"anything")
    assert look(model)[1].height == 10
    compact_all(model, LATER)
    assert (look(model)[1].height, look(model)[0].unreadable) == (10, 0)
    assert join_outcomes(model).counts["matched"] == 5


def outcome(made: datetime, value: float, told: datetime = LATER, caller: str | None = None) -> Any:
    return log_schema.OutcomeRecord(id_at(made.timestamp()), value, told.timestamp(), caller)


def test_late_outcomes_of_a_day_are_one_file_which_each_part_of_it_reads(environment: Environment) -> None:
    model, store, now = environment.model(MODEL), environment.store, HOUR + timedelta(days=40)
    made = [HOUR.replace(hour=hour) + timedelta(minutes=i) for hour in (1, 12, 23) for i in range(20)]
    scored = [log_schema.PredictionRecord(id_at(at.timestamp()), at.timestamp(), 1, "a", 0.5, 1.0, {}) for at in made]
    for one in scored:
        put(store, "predictions", MODEL, one.at, 1, one)
    told = [log_schema.OutcomeRecord(one.id, 1.0, now.timestamp() - 9000) for one in scored]
    other = [outcome(HOUR + timedelta(days=1, seconds=i), 1.0, now - timedelta(hours=2)) for i in range(900)]
    put(store, "outcomes", MODEL, now.timestamp() - 9000, 0, *told, *other)
    compact(model, "predictions", now)
    before = Partitions(model, {"id": pl.String}, joined).look(HOUR - timedelta(days=1), now)
    assert compact(model, "outcomes", now) == Compacted(960, 0, 0)
    assert [key.split("/")[2:4] for key in store.keys("outcomes")] == [["2024-05-01", "late"], ["2024-05-02", "late"]]
    after = Partitions(model, {"id": pl.String}, joined).look(HOUR - timedelta(days=1), now)
    assert pl.concat(after).sort("id").equals(pl.concat(before).sort("id"))
    assert pl.concat(after)["value"].to_list() == [1.0] * 60
    assert join_outcomes(model).counts["matched"] == 60


def joined(rows: pl.DataFrame, told: pl.DataFrame) -> pl.DataFrame:
    return rows.join(told.select("id", "value"), on="id", how="left")


def test_outcomes_of_no_prediction_that_could_be_are_dropped_and_counted(environment: Environment) -> None:
    model = environment.model(MODEL)
    made_up = ["", "x" * 36, "ffffffff-ffff-7fff-8fff-ffffffffffff", "00000000-0000-7000-8000-000000000000"]
    told = [log_schema.OutcomeRecord(each, 1.0, HOUR.timestamp()) for each in [*made_up, id_at(LATER.timestamp())]]
    put(model.store, "outcomes", MODEL, HOUR.timestamp(), 0, *told, outcome(HOUR, 1.0, HOUR))
    logged(model.store, 3)
    assert look(model)[1].height == 3
    assert compact(model, "outcomes", LATER) == Compacted(2, 5, 0)
    assert len(model.store.keys("outcomes")) == 1


def test_a_damaged_file_may_hold_an_entity_and_forgetting_it_is_not_complete(environment: Environment) -> None:
    model = environment.model(MODEL)
    logged(model.store, 10)
    rot(model.store, model.store.keys("predictions")[0])
    assert forget(model, None, "c1", "asked").found["damaged"] == 1
    compact_all(model, LATER)
    assert forget(model, None, "c1", "asked").found["damaged"] == 1
    assert expire(model, "predictions", 30, datetime.now(UTC)) == 2, "what was set aside, and an empty Parquet"
    assert forget(model, None, "c1", "asked").found["damaged"] == 0
