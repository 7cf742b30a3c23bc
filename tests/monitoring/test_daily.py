from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from mlops import log_schema, profile
from mlops.contract import Contract
from mlops.environment import Environment
from mlops.log_schema import OutcomeRecord, PredictionRecord
from mlops.registered_model import RegisteredModel
from mlops.store import Store
from monitoring import drift
from monitoring.compaction import compact
from monitoring.daily import Daily, Days
from tests.ids import LOG_KEY, id_at, new_id
from tests.live_log import put
from tests.synthetic import MODEL, contract_yaml, frame
from training import data, evaluation
from training import profile as training_profile

START = datetime(2024, 6, 1, tzinfo=UTC)
CHAMPION, FORMER = "a" * 64, "b" * 64
NOW = START + timedelta(days=40)


@dataclass
class Log:
    """What two replicas log of rows: half of each day's at nine (UTC), half at twenty-one, with outcomes an hour later."""

    model: RegisteredModel
    contract: Contract = field(default_factory=lambda: Contract.model_validate(contract_yaml()))
    days: int = 3
    a_day: int = 40
    seed: int = 7

    def __post_init__(self) -> None:
        random = np.random.default_rng(self.seed)
        rows = frame(self.days, self.a_day, self.seed)
        n = rows.height
        at = [
            START + timedelta(days=i // self.a_day, hours=_hour(i, self.a_day), seconds=i % self.a_day)
            for i in range(n)
        ]
        chance = 1 / (1 + np.exp(-random.normal(size=n)))
        self.rows = rows.with_columns(
            pl.Series("at", at), color=pl.when(pl.int_range(n) % 10 == 0).then(pl.lit("violet")).otherwise("color"),
            id=pl.Series([id_at(each.timestamp()) for each in at]), model_version=pl.when(pl.int_range(n) % 4 == 0).then(pl.lit(FORMER)).otherwise(pl.lit(CHAMPION)),
            score=pl.Series(np.clip(chance + 0.1 * random.normal(size=n), 0, 1)), y=pl.Series((random.random(n) < chance).astype(float)),
            known=pl.int_range(n) % 5 > 0,
        )  # fmt: skip

    def write(self, days: range | None = None) -> Log:
        for (at,), rows in self.rows.group_by(pl.col("at").dt.truncate("1h"), maintain_order=True):
            if (at - START).days in (days or range(self.days)):
                self._put("predictions", at, [self._record(row) for row in rows.iter_rows(named=True)])
                known = rows.filter("known").iter_rows(named=True)
                told = [OutcomeRecord(row["id"], row["y"], row["at"].timestamp()) for row in known]
                self._put("outcomes", at + timedelta(hours=1), told)
        return self

    def _put(self, kind: str, hour: datetime, records: list[Any]) -> None:
        for half in range(2):
            revision = int(kind == "predictions")
            put(self.model.store, kind, self.contract.model, hour.timestamp(), revision, *records[half::2])

    def _record(self, row: dict[str, Any]) -> PredictionRecord:
        logged = self.contract.logged
        features = {name: row[name] for name in logged["keep"] if row[name] is not None}
        features |= {name: LOG_KEY.hashed(name, row[name]) for name in logged["hash"] if row[name] is not None}
        at = row["at"].timestamp()
        return PredictionRecord(row["id"], at, 1, row["model_version"], row["score"], 0.0, features, event=at + 3600)

    @cached_property
    def profile(self) -> dict[str, Any]:
        trained = data.canonical(frame(30))
        return training_profile.profile(self.contract, trained, np.random.default_rng(0).random(trained.height))

    @cached_property
    def daily(self) -> Daily:
        bundle: Any = SimpleNamespace(contract=self.contract, json=lambda _: self.profile)
        return Daily(self.model, CHAMPION, bundle)

    def look(self) -> Days:
        return self.daily.look(START, NOW)

    def counted(self, day: int, name: str) -> list[int]:
        """From the rows themselves."""
        rows = self.rows[day * self.a_day : (day + 1) * self.a_day]
        if name == "score":
            rows = rows.filter(pl.col("model_version") == CHAMPION)
        values = rows[name].to_list() if rows[name].dtype == pl.String else rows[name].cast(pl.Float64).to_numpy()
        return profile.count(self.profile["bins"][name], values).tolist()


def _hour(number: int, a_day: int) -> int:
    return 9 if number % a_day < a_day // 2 else 21


@pytest.fixture
def log(environment: Environment) -> Log:
    return Log(environment.model(MODEL))


def as_lists(days: Days) -> dict[date, dict[str, list[int]]]:
    return {day: {name: rows.tolist() for name, rows in found.items()} for day, found in days.counts.items()}


def same(one: Days, other: Days) -> bool:
    return (
        as_lists(one) == as_lists(other)
        and one.ranks.equals(other.ranks)
        and one.quality.with_columns(pl.selectors.float().round(9)).equals(
            other.quality.with_columns(pl.selectors.float().round(9))
        )
    )


def compact_all(model: RegisteredModel) -> None:
    for kind in ("predictions", "outcomes"):
        compact(model, kind, NOW)


def test_the_log_is_counted_by_day_in_the_bins_of_the_profile(log: Log) -> None:
    found = as_lists(log.write().look())
    expected = {
        (START + timedelta(days=day)).date(): {name: log.counted(day, name) for name in log.daily.bins}
        for day in range(log.days)
    }
    assert found == expected
    assert set(log.daily.bins) == {*log.contract.features, "score"}


def test_segments_and_parquet_are_counted_alike(log: Log) -> None:
    before = log.write().look()
    compact_all(log.model)
    assert not [key for key in log.model.store.keys("") if key.startswith("predictions/") and key.endswith(".log")]
    assert same(log.look(), before)
    del log.daily
    assert same(log.look(), before)


def test_a_row_that_is_in_a_segment_and_in_parquet_counts_once(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    before = log.write().look()

    def killed(self: Store, key: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "delete", killed)
    for kind in ("predictions", "outcomes"):
        with pytest.raises(KeyboardInterrupt):
            compact(log.model, kind, NOW)
    assert same(log.look(), before)
    del log.daily
    assert same(log.look(), before)


def test_a_look_reads_what_came_since_the_last_one(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    log.write(range(2))
    compact_all(log.model)
    log.look()
    log.write(range(2, 3))
    read, get = [], Store.get

    def counting(self: Store, key: str, limit: int | None = None) -> bytes | None:
        read.append(key)
        return get(self, key, limit)

    monkeypatch.setattr(Store, "get", counting)
    found = log.look()
    assert {key.split("/")[2] for key in read} == {"2024-06-03"}
    del log.daily
    assert same(found, log.look())
    assert int(found.quality["rows"].sum()) == 3 * log.a_day


def test_a_file_that_cannot_be_read_is_counted_until_it_can(log: Log) -> None:
    log.write()
    compact(log.model, "predictions", NOW)
    store = log.model.store
    whole = log.look()
    assert whole.unreadable == 0
    key = next(key for key in store.keys(f"predictions/{MODEL}/2024-06-02") if key.endswith(".parquet"))
    content = store.get(key) or b""
    store.put(key, content[: len(content) // 2])
    store.put(f"predictions/{MODEL}/2024-06-03/11/00000001-x.log", log_schema.line(OutcomeRecord("a", 1.0, 2.0)))
    del log.daily
    torn = log.look()
    assert torn.unreadable == 2
    assert [int(found["size"].sum()) for found in torn.counts.values()] == [40, 20, 40]
    store.put(key, content)
    store.delete(f"predictions/{MODEL}/2024-06-03/11/00000001-x.log")
    healed = log.look()
    assert healed.unreadable == 0
    assert same(healed, whole)


def test_hashed_categories_are_told_apart_and_dropped_features_are_left_out(environment: Environment) -> None:
    changed = contract_yaml()
    changed["features"]["color"]["log"] = "drop"
    changed["features"]["size"]["log"] = changed["features"]["member"]["log"] = "hash"
    log = Log(environment.model(MODEL), Contract.model_validate(changed)).write()
    assert set(log.daily.bins) == {"heat", "region", "group", "score"}
    found = as_lists(log.look())[START.date()]
    assert found["group"] == log.counted(0, "group")
    assert min(found["group"][:2]) > 0
    assert sum(found["group"][:2]) == log.a_day


def test_a_day_is_that_of_the_event_in_the_contracts_zone(environment: Environment) -> None:
    """Logged an hour before the event, which is at midnight on Kiritimati."""
    zoned = Contract.model_validate(contract_yaml(time={"column": "at", "zone": "Pacific/Kiritimati"}))
    found = Log(environment.model(MODEL), zoned, days=1).write().look()
    assert list(found.counts) == [date(2024, 6, 2)]


def test_another_type_of_a_logged_value_is_a_missing_one(log: Log) -> None:
    log.write()
    at = (START + timedelta(days=1, hours=9)).timestamp()
    odd = PredictionRecord(new_id(), at, 1, CHAMPION, 0.5, 1.0, {"size": "large", "color": "red"}, event=at)
    log.model.store.put(log_schema.segment_key("predictions", MODEL, at, 1, "odd"), log_schema.line(odd))
    missing = [found["size"][-1] for found in log.look().counts.values()]
    assert missing == [0, 1, 0]


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_sums_by_day_and_version_are_those_of_the_rows(environment: Environment, task: str) -> None:
    log = Log(environment.model(MODEL), Contract.model_validate(contract_yaml(task))).write()
    found = log.look().quality
    assert found.select("day", "model_version").unique().height == found.height == 2 * log.days
    scale = float(log.profile["target"]["scale"])
    rows = log.rows.with_columns(day=pl.col("at").dt.date())
    for part in found.iter_rows(named=True):
        own = rows.filter(pl.col("day") == part["day"], pl.col("model_version") == part["model_version"])
        known = own.filter("known")
        score, y = known["score"].to_numpy(), known["y"].to_numpy()
        assert (part["rows"], part["n"]) == (own.height, known.height)
        assert part["last"] == pytest.approx(own["at"].to_list()[-1].timestamp()), "no event is after its arrival"
        expected = {
            "loss": evaluation.loss(log.contract, y, score, scale).sum(), "score": score.sum(), "value": y.sum(),
            "above": np.sign(score - y).sum() / 2, "error": np.abs(score - y).sum(),
        }  # fmt: skip
        assert {name: part[name] for name in expected} == pytest.approx(expected)


def test_ranks_give_the_area_under_the_curve(environment: Environment) -> None:
    log = Log(environment.model(MODEL), days=1, a_day=4000).write()
    ranks = log.look().ranks.filter(pl.col("model_version") == CHAMPION).sort("rank")
    positive, negative = ranks["positive"].to_numpy(), ranks["negative"].to_numpy()
    below = np.cumsum(negative) - negative / 2
    known = log.rows.filter("known", pl.col("model_version") == CHAMPION)
    area = (positive * below).sum() / positive.sum() / negative.sum()
    assert area == pytest.approx(roc_auc_score(known["y"], known["score"]), abs=1e-3)


def test_of_several_outcomes_the_last_one_received_counts(log: Log) -> None:
    before = log.write().look().quality
    (told,) = log.rows.filter("known").head(1).iter_rows(named=True)
    at = told["at"].timestamp()
    for later, value in ((2.0, told["y"]), (1.0, 1 - told["y"])):  # segments arrive in any order
        key = log_schema.segment_key("outcomes", MODEL, at + 3600 * later, 0, f"{later}")
        log.model.store.put(key, log_schema.line(OutcomeRecord(told["id"], value, at + later)))
    assert log.look().quality.select("n", "value").sum().equals(before.select("n", "value").sum())


def test_the_analysis_of_a_log_names_the_feature_that_is_new_in_it(environment: Environment) -> None:
    log = Log(environment.model(MODEL), days=40).write()
    found = drift.analyse(log.daily, log.look())
    assert {each.feature for each in found.alarms} == {"color"}
    assert "+10.0% unknown values" in found.why
    assert (len(found.days), found.rows, found.unreadable) == (14, 14 * log.a_day, 0)
