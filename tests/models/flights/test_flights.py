from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest

from mlops.contract import Window
from training import data, estimator, evaluation, leakage
from training.definition import ModelDefinition, load_definition
from training.golden import check_golden
from training.validation import validate

WEATHER = ["temp", "dewp", "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib"]


@pytest.fixture(scope="module")
def flights() -> ModelDefinition:
    return load_definition("flights")


@pytest.fixture(scope="module")
def raw(flights: ModelDefinition) -> pl.DataFrame:
    return flights.load()


@pytest.fixture(scope="module")
def rows(flights: ModelDefinition, raw: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    return data.canonical(validate(raw, flights.contract, tmp_path_factory.mktemp("flights") / "quarantine.csv"))


def test_each_flight_that_arrived_is_there_once(flights: ModelDefinition, raw: pl.DataFrame) -> None:
    assert raw.height == 327_346
    assert raw.select("carrier", "flight", "origin", "date", "sched_dep_time").is_unique().all()
    assert data.select(raw, flights.contract).height == raw.height


def test_the_weather_is_an_hour_old_at_least(flights: ModelDefinition, raw: pl.DataFrame) -> None:
    assert flights.contract.time is not None
    assert flights.contract.time.lead_minutes >= 60
    assert leakage.known_too_late(raw, flights.contract) == {}
    assert (raw["scheduled_at"] - raw["weather_at"] >= timedelta(hours=1)).all()
    assert {name for name, feature in flights.contract.features.items() if feature.known_at == "weather_at"} == set(
        WEATHER
    )


def test_flights_of_one_airport_and_hour_share_its_weather(raw: pl.DataFrame) -> None:
    shared = raw.group_by("origin", "weather_at").agg(pl.struct(WEATHER).n_unique().alias("different"))
    assert shared["different"].max() == 1
    assert raw["temp"].null_count() / raw.height < 0.01


def test_nothing_known_after_departure_is_a_feature(flights: ModelDefinition, raw: pl.DataFrame) -> None:
    after = {"dep_time", "dep_delay", "arr_time", "arr_delay", "air_time"}
    assert after == set(flights.contract.after)
    assert not after & set(flights.contract.features)
    assert after <= set(raw.columns)


def test_no_row_breaks_the_contract(raw: pl.DataFrame, rows: pl.DataFrame) -> None:
    assert rows.height == raw.height


def test_the_golden_rows_hold_and_fail_on_a_join_of_the_wrong_airport(
    flights: ModelDefinition, rows: pl.DataFrame
) -> None:
    assert flights.contract.golden
    assert all(check.outcome == "pass" for check in check_golden(flights.contract, rows, lambda _: []))
    moved = rows.with_columns(origin=pl.col("origin").replace({"EWR": "JFK", "JFK": "EWR"}))
    assert any(check.outcome == "fail" for check in check_golden(flights.contract, moved, lambda _: []))


def test_the_held_out_month_follows_the_training(flights: ModelDefinition, rows: pl.DataFrame) -> None:
    windows = flights.contract.windows
    assert (
        data.cut(rows, flights.contract, windows.train).window.end
        == data.cut(rows, flights.contract, windows.holdout).window.start
    )


def test_winter_predicts_june_as_it_is_known_to(flights: ModelDefinition, rows: pl.DataFrame, tmp_path: Path) -> None:
    contract = flights.contract
    train, holdout = (
        data.cut(rows, contract, Window.parse("0..0.247")),
        data.cut(rows, contract, contract.windows.holdout),
    )
    assert (str(train.window), str(holdout.window)) == ("2013-01-01..2013-04-01", "2013-06-01..2013-07-01")
    fitted = estimator.fit(flights.pipeline(contract, flights.parameters, 0), train.frame, contract)
    found = evaluation.summary(
        contract, holdout.frame["late"].to_numpy(), estimator.score(fitted, holdout.frame, contract)
    )
    assert found["log_loss"] == pytest.approx(0.553, abs=0.015)
    assert found["auc"] == pytest.approx(0.72, abs=0.015)
    alone = leakage.single_feature_auc(contract, train.frame)
    assert max(alone.values()) < 0.7
    told = contract.model_copy(update={"features": contract.features | {"dep_delay": contract.features["distance"]}})
    assert leakage.single_feature_auc(told, train.frame)["dep_delay"] > contract.gate.max_single_feature_auc
