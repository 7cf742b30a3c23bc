"""What is to be forgotten is gone, and nothing else is: whatever happens at the same time, wherever a run is killed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from cli.main import app
from mlops import log_schema, promotion, snapshot
from mlops.attestations import attest
from mlops.bundle import Bundle
from mlops.contract import Contract
from mlops.environment import Environment
from mlops.errors import ConflictError
from mlops.registered_model import RegisteredModel
from mlops.store import Store
from monitoring import compaction, frames, retention
from monitoring.controller import Controller
from monitoring.files import put as put_file
from monitoring.files import read
from monitoring.frames import parquet
from monitoring.retention import Forgotten, entity_of, forget, forgotten
from tests import synthetic
from tests.ids import id_at, new_id
from tests.live_log import put
from tests.service import Service
from tests.synthetic import MODEL, contract_yaml

HOUR = datetime(2024, 5, 1, 12, tzinfo=UTC)
JANE = "jane-doe"
CONTRACT = Contract.model_validate(contract_yaml())


@pytest.fixture
def model(environment: Environment) -> RegisteredModel:
    """A log of two hours, of which the first is Parquet; one file of each is without JANE. A snapshot that has her too."""
    made = environment.model(MODEL)
    for hour in (0, 1):
        write(made, hour, ["a", JANE, "b", None, JANE, "c"] * 3)
        write(made, hour, ["a", "b"], revision=2)
        if hour == 0:
            for kind in frames.KINDS:
                compaction.compact(made, kind, HOUR + timedelta(minutes=70))
    rows = pl.DataFrame(
        {"customer": ["a", JANE, None, "b"], "size": [1.0, 2.0, 3.0, None], "note": ["x", "y", "z", ""]}
    )
    snapshot.put(made.store, made.name, parquet(rows))
    return made


def write(model: RegisteredModel, hour: int, entities: list[str | None], revision: int = 1) -> list[str]:
    """A segment of predictions, and one of the outcomes of every second of them; returns the ids."""
    at = (HOUR + timedelta(hours=hour)).timestamp()
    rows = [
        log_schema.PredictionRecord(
            id_at(at), at + i, revision, "a" * 64, i / 10, 1.0, {"size": i / 3, "color": "é"}, entity
        )
        for i, entity in enumerate(entities)
    ]
    known = [log_schema.OutcomeRecord(row.id, 1.0, at + 60) for row in rows[::2]]
    for kind, records in (("predictions", rows), ("outcomes", known)):
        put(model.store, kind, MODEL, at, revision, *records)
    return [row.id for row in rows]


def everything(store: Store) -> dict[str, bytes]:
    return {key: store.get(key) or b"" for key in store.keys("")}


def rows(model: RegisteredModel, kind: str) -> pl.DataFrame:
    """All columns, by id."""
    schema = {**frames.COLUMNS[frames.KINDS[kind]], "feature.size": pl.Float64, "feature.color": pl.String}
    schema = schema if kind == "predictions" else frames.COLUMNS[frames.KINDS[kind]]
    found = [read(model.store, key, schema) for key in model.store.keys(f"{kind}/{MODEL}")]
    return pl.concat([pl.DataFrame(schema=schema), *(each.rows for each in found if each)]).sort("id")


def hers(model: RegisteredModel) -> list[str]:
    """What of her is left anywhere in the bucket, as text or in a table."""
    found = []
    for key, content in everything(model.store).items():
        content = snapshot.get(model.store, MODEL) or b"" if key == snapshot.key(MODEL) else content
        table = pl.read_parquet(BytesIO(content)) if key.endswith(".parquet") else pl.DataFrame()
        found += [key] if JANE.encode() in content or JANE in str(table.rows()) else []
    return found


def test_her_rows_are_gone_and_all_others_are_as_they_were(
    model: RegisteredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, tables = everything(model.store), {kind: rows(model, kind) for kind in frames.KINDS}
    mine = pl.col("entity").eq_missing(JANE)
    ids = tables["predictions"].filter(mine)["id"]
    written: list[str] = []
    put = Store.put
    monkeypatch.setattr(Store, "put", lambda self, key, data: written.append(key) or put(self, key, data))
    done = forget(model, CONTRACT, JANE, "she asked")
    assert done.found == {"predictions": 12, "outcomes": 6, "snapshot": 1, "files": 5, "damaged": 0}
    assert hers(model) == []
    assert rows(model, "predictions").equals(tables["predictions"].filter(~mine))
    assert rows(model, "outcomes").equals(tables["outcomes"].filter(~pl.col("id").is_in(ids.to_list())))
    left = pl.read_parquet(BytesIO(snapshot.get(model.store, MODEL) or b""))
    assert left.to_dict(as_series=False) == {
        "customer": ["a", None, "b"], "size": [1.0, 3.0, None], "note": ["x", "z", ""]
    }  # fmt: skip
    after, snapshot_key = everything(model.store), snapshot.key(MODEL)
    assert len(before.keys() - after.keys()) == 4
    assert after.keys() - before.keys() == {f"models/{MODEL}/forgotten/00000001.json", *written} - {snapshot_key}
    assert all(after[key] == before[key] for key in after.keys() & before.keys() - {snapshot_key})


def test_lines_of_others_keep_their_bytes_and_half_a_line_goes(model: RegisteredModel) -> None:
    [key] = [each for each in model.store.keys("predictions") if each.endswith(".log") and "/00000001-" in each]
    content = model.store.get(key) or b""
    model.store.delete(key)
    start = key[: key.rindex("/") + 9]
    put_file(model.store, start, content + content.splitlines()[1][:-5], "log")  # of her, as a crash leaves it
    forget(model, None, JANE, "she asked")
    kept = b"".join(line for line in content.splitlines(True) if JANE.encode() not in line)
    assert model.store.get(f"{start}-{hashlib.sha256(kept).hexdigest()}.log") == kept


def test_a_file_of_hers_alone_stays_as_an_empty_one(environment: Environment) -> None:
    """Rollback asks the names of the files which releases have answered."""
    model = environment.model(MODEL)
    write(model, 0, [JANE], revision=7)
    forget(model, None, JANE, "she asked")
    assert promotion._observed_revisions(model) == {7}
    assert compaction.compact(model, "predictions").rows == 0
    assert forget(model, None, JANE, "again").found["files"] == 0
    assert promotion._observed_revisions(model) == {7}


def test_who_asked_is_recorded_and_she_only_as_a_hash(model: RegisteredModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOPS_BY", "ada")
    one, two = (forget(model, CONTRACT, entity, "asked") for entity in (JANE, "b"))
    raw = model.store.get(f"models/{MODEL}/forgotten/00000001.json") or b""
    assert JANE.encode() not in raw
    read = Forgotten.model_validate_json(raw)
    assert read.model_copy(update={"ids": []}) == one
    assert (one.by, one.why, one.entity != two.entity, one.salt == two.salt) == ("ada", "asked", True, True)
    seen = pl.DataFrame({"entity": ["a", JANE, None, "b", "c"]})
    assert seen.filter(~forgotten(model)(pl.col("entity")))["entity"].to_list() == ["a", None, "c"]
    other = RegisteredModel("other", model.environment, model.store, model.keyring)
    assert seen.filter(~forgotten(other)(pl.col("entity"))).height == 5


def test_an_entity_is_told_from_a_snapshot_as_the_app_tells_it_from_a_request() -> None:
    contract = Contract.model_validate(contract_yaml(entity=["customer", "size", "color"]) | {"slices": []})
    frame = pl.DataFrame({"customer": [7, None, 8], "size": [1, 2, 3], "color": ["red", "red", "|"]})
    assert frame.select(entity_of(contract)).to_series().to_list() == ["7|1.0|red", None, "8|3.0||"]


class Killed(BaseException):
    pass


def test_a_run_killed_at_any_call_to_the_bucket_loses_nothing_else_and_is_completed(model: RegisteredModel) -> None:
    start = everything(model.store)
    others = {
        "predictions": rows(model, "predictions").filter(~pl.col("entity").eq_missing(JANE)),
        "outcomes": rows(model, "outcomes"),
    }
    mine = rows(model, "predictions").filter(pl.col("entity") == JANE)["id"].to_list()
    others["outcomes"] = others["outcomes"].filter(~pl.col("id").is_in(mine))
    call, died = 0, True
    while died:
        call += 1
        for key in model.store.keys(""):
            model.store.delete(key)
        for key, data in start.items():
            model.store.put(key, data)
        with pytest.MonkeyPatch.context() as patch:
            _die_at(patch, call)
            try:
                forget(model, CONTRACT, JANE, "she asked")
                died = False
            except Killed:
                pass
        for kind, kept in others.items():
            left = rows(model, kind).unique().sort("id")
            assert left.filter(pl.col("id").is_in(kept["id"].to_list())).equals(kept)
        forget(model, CONTRACT, JANE, "again")
        assert hers(model) == []
        for kind, kept in others.items():
            assert rows(model, kind).equals(kept)
    assert call > 20


def _die_at(patch: pytest.MonkeyPatch, call: int) -> None:
    left = [call]

    def dying(name: str) -> Callable[..., Any]:
        original = getattr(Store, name)

        def method(self: Store, *given: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return original(self, *given, **named)

        return method

    for name in ("get", "put", "put_new", "keys", "delete"):
        patch.setattr(Store, name, dying(name))


def test_an_outcome_that_comes_later_goes_with_the_next_run(model: RegisteredModel) -> None:
    ids = rows(model, "predictions").filter(pl.col("entity") == JANE)["id"]
    forget(model, CONTRACT, JANE, "she asked")
    late = [log_schema.OutcomeRecord(each, 1.0, HOUR.timestamp()) for each in (*ids, new_id())]
    model.store.put(f"outcomes/{MODEL}/2024-05-09/00/00000000-late.log", b"".join(map(log_schema.line, late)))
    assert forget(model, CONTRACT, JANE, "again").found == {
        "predictions": 0, "outcomes": len(ids), "snapshot": 0, "files": 1, "damaged": 0
    }  # fmt: skip
    assert late[-1].id in rows(model, "outcomes")["id"]


def test_more_ids_than_a_record_holds_are_in_the_next_ones(
    model: RegisteredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_IDS", 5)
    forget(model, CONTRACT, JANE, "she asked")
    records = retention._records(model)
    assert [len(each.ids) for each in records] == [5, 5, 2]
    assert len({one for each in records for one in each.ids}) == 12
    forget(model, CONTRACT, "b", "he too")
    assert len(retention._records(model)) == 5


def at(monkeypatch: pytest.MonkeyPatch, **later: float) -> None:
    moment = datetime.now(UTC) + timedelta(**later)
    monkeypatch.setattr(retention, "now", lambda: moment)


def test_it_is_complete_when_nothing_was_left_an_hour_after_something_was_found(
    model: RegisteredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def complete() -> bool:
        return forget(model, CONTRACT, JANE, "she asked").complete

    assert not complete(), "rows were found"
    assert not complete(), "the app may still hold some"
    at(monkeypatch, minutes=61)
    write(model, 3, [JANE])
    assert not complete(), "it did"
    assert not complete(), "and it may again"
    at(monkeypatch, minutes=123)
    assert complete()
    assert not forget(model, CONTRACT, "nobody", "asked").complete, "another entity has its own time"
    at(monkeypatch, minutes=185)
    assert forget(model, CONTRACT, "nobody", "asked").complete


def test_what_a_compaction_had_read_before_is_found_by_the_next_run(
    model: RegisteredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = rows(model, "predictions").filter(~pl.col("entity").eq_missing(JANE)).sort("id")
    by_hour = compaction._by_hour

    def meanwhile(*given: Any) -> Any:
        if not retention._records(model):
            forget(model, CONTRACT, JANE, "she asked")
        return by_hour(*given)

    with monkeypatch.context() as patch:
        patch.setattr(compaction, "_by_hour", meanwhile)
        compaction.compact(model, "predictions")
    assert hers(model) != []
    at(monkeypatch, hours=2)
    assert not forget(model, CONTRACT, JANE, "again").complete
    at(monkeypatch, hours=4)
    assert forget(model, CONTRACT, JANE, "again").complete
    assert hers(model) == []
    assert rows(model, "predictions").unique("id").sort("id").equals(others)


def test_a_file_that_is_compacted_before_it_is_read_is_found_where_it_went(
    model: RegisteredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, once = retention.read, [compaction.compact]

    def compacted(*given: Any) -> Any:
        if once:
            once.pop()(model, "predictions")
        return read(*given)

    monkeypatch.setattr(retention, "read", compacted)
    assert forget(model, CONTRACT, JANE, "she asked").found["predictions"] == 12
    assert hers(model) == []


def test_two_runs_at_once_are_one_after_the_other(model: RegisteredModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise each would put back what the other one took."""
    before, its_rows, once = rows(model, "predictions"), retention._snapshot, [True]

    def another_first(*given: Any) -> Any:
        if once:
            once.clear()
            forget(model, CONTRACT, "b", "he too")
        return its_rows(*given)

    monkeypatch.setattr(retention, "_snapshot", another_first)
    with pytest.raises(ConflictError, match="try again"):
        forget(model, CONTRACT, JANE, "she asked")
    gone = pl.col("entity").eq_missing("b")
    assert rows(model, "predictions").equals(before.filter(~gone))


@pytest.fixture
def run(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    for name in ("home", "bucket", "keyring", "endpoint", "tracking"):
        monkeypatch.setenv(f"MLOPS_{name.upper()}", str(getattr(environment, name)))
    monkeypatch.setenv("MLOPS_MODEL", MODEL)

    def invoke(*words: str, given: str = "") -> tuple[int, str]:
        done = CliRunner().invoke(app, words, input=given)
        return done.exit_code if done.exception is None or done.exit_code == 0 else 2, done.output or str(
            done.exception
        )

    return invoke


def release(environment: Environment, bundle: Bundle) -> None:
    model = environment.model(MODEL)
    digest = synthetic.publish(environment, bundle)
    attest(model, "approved", digest, environment=environment.name)
    model.releases.append(digest, "test")


def test_the_command_takes_an_entity_or_its_columns(
    environment: Environment, model: RegisteredModel, first_bundle: Bundle, run: Callable[..., tuple[int, str]]
) -> None:
    code, said = run("forget", "nobody", "--why", "asked")
    assert (code, "0 predictions, 0 outcomes, 0 snapshot" in said, "run it again after" in said) == (0, True, True)
    release(environment, first_bundle)
    for words, given in (((f"customer={JANE}",), ""), (("a",), ""), (("-",), "b\n")):
        code, said = run("--json", "forget", *words, "--why", "asked", given=given)
        assert code == 0
        found = json.loads(said)
        assert found["found"]["predictions"] > 0
        assert (found["complete"], set(found)) == (False, {"at", "by", "why", "found", "complete"})
    assert {*rows(model, "predictions")["entity"].to_list()} == {None, "c"}
    code, said = run("forget", "customer=x", "size=1", "--why", "asked")
    assert (code, "customer=…" in said) == (2, True)


def test_rows_that_the_app_still_holds_are_found_by_the_next_run(
    environment: Environment, first_bundle: Bundle
) -> None:
    release(environment, first_bundle)
    model = environment.model(MODEL)
    with Service(environment, MODEL, segment_seconds=600) as service:
        service.serves(1)
        for _ in range(2):
            service.predict(synthetic.request(customer=JANE), synthetic.request(customer="other"))
            service.until(lambda: hers(model) != [])  # the first segment closes at once, the next one does not
        assert forget(model, CONTRACT, JANE, "she asked").found["predictions"] == 1
        assert hers(model) == []
    assert hers(model) != []
    assert forget(model, CONTRACT, JANE, "again").found["predictions"] == 1
    assert hers(model) == []
    assert rows(model, "predictions")["entity"].to_list() == ["other", "other"]


def test_the_controller_deletes_whole_days_that_are_older_than_the_champions_contract_keeps(
    environment: Environment, first_bundle: Bundle
) -> None:
    raw = json.loads(first_bundle.files["contract.json"]) | {"retention_days": 30}
    kept = Bundle(first_bundle.files | {"contract.json": Contract.model_validate(raw).json_bytes()})
    model, today = environment.model(MODEL), datetime.now(UTC)
    days = {age: f"{today - timedelta(days=age):%Y-%m-%d}" for age in (0, 29, 30, 31, 400)}
    for day in days.values():
        for kind in frames.KINDS:
            for hour in ("00", "23"):
                model.store.put(f"{kind}/{MODEL}/{day}/{hour}/00000001-a.parquet", b"")
    model.store.put(f"predictions/other/{days[400]}/23/00000001-a.parquet", b"")
    controller = Controller(environment, MODEL)
    release(environment, first_bundle)
    Controller(environment, MODEL).compact()
    assert {key.split("/")[2] for key in model.store.keys("predictions/" + MODEL)} == {*days.values()}, "no limit"
    release(environment, kept)
    controller.compact()
    for kind in frames.KINDS:
        assert {key.split("/")[2] for key in model.store.keys(f"{kind}/{MODEL}")} == {days[0], days[29], days[30]}
        value = controller.metrics.registry.get_sample_value("mlops_retention_deleted_objects_total", {"kind": kind})
        assert value == 4
    assert model.store.keys("predictions/other") != []
