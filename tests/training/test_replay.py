import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import polars as pl
import pytest

from mlops import bundle as bundles
from mlops import log_schema, promotion
from mlops.bundle import Bundle
from mlops.contract import Contract, Window
from mlops.environment import Environment
from mlops.errors import UserError
from tests import synthetic
from tests.service import Service
from tests.service import environment as make_environment
from training import replay
from training.definition import ModelDefinition
from training.replay import replay_window

DAYS, A_DAY = 10, 6


def numbered(rows: pl.DataFrame) -> pl.DataFrame:
    """Each row has a size of its own, by which it is found in the prediction log."""
    return rows.with_columns(size=pl.int_range(rows.height) / 1000)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, first_bundle: Bundle) -> Iterator[Service]:
    environment = make_environment(tmp_path_factory.mktemp("replay"))
    promotion.release(environment.model(synthetic.MODEL), synthetic.publish(environment, first_bundle), "first")
    with Service(environment, synthetic.MODEL) as service:
        service.serves(1)
        yield service


@dataclass
class Replayed:
    """The result of a replay, and its traces in the log: predictions by `size`, outcomes by the id of their prediction."""

    result: dict[str, Any]
    predictions: dict[float, log_schema.PredictionRecord]
    outcomes: dict[str, log_schema.OutcomeRecord]


@pytest.fixture
def play(service: Service, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Replayed]:
    monkeypatch.setenv("MLOPS_API_KEY", service.key)

    def played(
        definition: ModelDefinition, window: str = "0..1", speed: float = 0, limit: int | None = None
    ) -> Replayed:
        here = service.environment.model_copy(update={"endpoint": service.url})
        began = time.time()
        result = replay_window(here, definition, Window.parse(window), speed, limit, 0, lambda _: None)
        rows = sum(result["model_versions"].values())

        def arrived(kind: Any, prefix: str) -> list[Any]:
            store, decode = here.store, msgspec.json.Decoder(kind).decode
            found = [
                decode(raw)
                for key in store.keys(f"{prefix}/{synthetic.MODEL}")
                for raw in log_schema.lines(store.get(key) or b"")
            ]
            return [one for one in found if one.at >= began]

        service.until(lambda: len(arrived(log_schema.PredictionRecord, "predictions")) >= rows)
        service.until(lambda: len(arrived(log_schema.OutcomeRecord, "outcomes")) >= result["outcomes"])
        predictions, outcomes = (
            arrived(log_schema.PredictionRecord, "predictions"),
            arrived(log_schema.OutcomeRecord, "outcomes"),
        )
        assert (len(predictions), len(outcomes)) == (rows, result["outcomes"]), "no row is sent twice"
        return Replayed(result, {row.features["size"]: row for row in predictions}, {one.id: one for one in outcomes})

    return played


def test_rows_are_sent_in_time_order_and_outcomes_when_they_became_known(
    play: Callable[..., Replayed], tmp_path: Path
) -> None:
    rows = numbered(synthetic.frame(DAYS, A_DAY))
    rows = rows.with_columns(at=pl.col("at").dt.truncate("2h"))  # some share their moment
    seen = play(synthetic.write_model(tmp_path, rows.sample(fraction=1, shuffle=True, seed=1)))
    asked = {row["size"]: row["at"] - timedelta(minutes=60) for row in rows.to_dicts()}
    known = {row["size"]: max(row["known_at"], asked[row["size"]]) for row in rows.to_dicts()}
    moments = set(asked.values())
    assert len(moments) < rows.height
    assert seen.result == seen.result | {"requests": len(moments), "failed": 0, "outcomes": rows.height, "error": ""}
    assert set(seen.predictions) == set(asked)

    order = sorted(seen.predictions, key=lambda size: seen.predictions[size].at)
    assert [asked[size] for size in order] == sorted(asked.values())
    assert len({row.at for row in seen.predictions.values()}) == len(moments), "rows of one moment share a request"
    truth = dict(zip(rows["size"], rows["y"], strict=True))
    for size, prediction in seen.predictions.items():
        outcome = seen.outcomes[prediction.id]
        assert outcome.value == truth[size]
        for other, when in asked.items():
            arrived_before = seen.predictions[other].at <= outcome.at
            assert arrived_before == (when <= known[size]), (
                "an outcome is sent after the requests from before it was known, and before the others"
            )


def test_speed_and_limit(play: Callable[..., Replayed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, speed, slept = numbered(synthetic.frame(DAYS, A_DAY)), DAYS * 86400 / 2, [0.0]
    clock = SimpleNamespace(monotonic=lambda: sum(slept), sleep=slept.append)
    definition = synthetic.write_model(tmp_path, rows)
    with monkeypatch.context() as patch:
        patch.setattr(replay, "time", clock)
        seen = play(definition, speed=speed, limit=7)
    assert seen.result["outcomes"] == 7
    assert {size * 1000 // A_DAY for size in seen.predictions} == {0, 1, 3, 4, 6, 8, 9}, "spread over the window"
    sent = rows.filter(pl.col("size").is_in(list(seen.predictions)))
    moments = sorted([at - timedelta(minutes=60) for at in sent["at"]] + sent["known_at"].to_list())
    due = [(moment - moments[0]).total_seconds() / speed for moment in moments]
    assert list(accumulate(slept[1:])) == pytest.approx(due), "ten days take two seconds"


@pytest.mark.parametrize(
    ("window", "days"),
    [("2024-01-03..2024-01-05", {2, 3}), ("0.2..0.4", {2, 3}), ("0.9..1.0", {9}), ("2024-01-10..2025-01-01", {9})],
)
def test_a_window_is_dates_or_fractions(
    play: Callable[..., Replayed], tmp_path: Path, window: str, days: set[int]
) -> None:
    seen = play(synthetic.write_model(tmp_path, numbered(synthetic.frame(DAYS, A_DAY))), window)
    assert Counter(size * 1000 // A_DAY for size in seen.predictions) == dict.fromkeys(days, A_DAY)


def test_a_window_without_rows_is_named(play: Callable[..., Replayed], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="contains no rows"):
        play(synthetic.write_model(tmp_path, synthetic.frame(DAYS, A_DAY)), "2030-01-01..2030-02-01")


def test_failures_are_counted_and_named_and_the_rest_is_sent(play: Callable[..., Replayed], tmp_path: Path) -> None:
    rows = numbered(synthetic.frame(DAYS, A_DAY))
    odd = rows.with_columns(
        region=pl.when(pl.int_range(pl.len()).is_in([5, 17])).then(pl.lit("east")).otherwise("region")
    )
    seen = play(synthetic.write_model(tmp_path, odd))
    assert (seen.result["failed"], seen.result["outcomes"]) == (2, rows.height - 2)
    assert "region" in seen.result["error"]
    assert "422" in seen.result["error"]
    assert set(rows["size"]) - set(seen.predictions) == {0.005, 0.017}


def test_an_unreachable_service_is_named(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOPS_API_KEY", service.key)
    definition = synthetic.write_model(tmp_path, synthetic.frame(1, 3))
    found = replay_window(service.environment, definition, Window.parse("0..1"), 0, None, 0, lambda _: None)
    assert (found["requests"], found["failed"], found["outcomes"]) == (3, 3, 0)
    assert "does not answer" in found["error"]


def test_more_rows_of_one_moment_than_a_request_takes(play: Callable[..., Replayed], tmp_path: Path) -> None:
    rows = numbered(synthetic.frame(1, 10_500)).with_columns(at=pl.lit(datetime(2024, 1, 1, 12, tzinfo=UTC)))
    seen = play(synthetic.write_model(tmp_path, rows.with_columns(known_at=pl.col("at"))))
    assert (seen.result["failed"], len(seen.predictions), len(seen.outcomes)) == (0, 10_500, 10_500)


def test_without_a_time_all_requests_come_first_and_then_the_outcomes(
    environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contract = synthetic.contract_yaml(time=None, outcome_at=None, entity=[])
    contract["features"]["heat"].pop("known_at")
    rows = synthetic.frame(DAYS, 20).drop("at", "heat_at", "known_at")
    definition = synthetic.write_model(tmp_path / "models", rows, contract)
    digest = synthetic.publish(environment, synthetic.build(Contract.model_validate(contract), rows))
    promotion.release(environment.model(synthetic.MODEL), digest, "timeless")
    with Service(environment, synthetic.MODEL) as service:
        service.serves(1)
        monkeypatch.setenv("MLOPS_API_KEY", service.key)
        here = environment.model_copy(update={"endpoint": service.url})
        found = replay_window(here, definition, Window.parse("0..1"), 0, 50, 0, lambda _: None)
        assert found == {"requests": 50, "failed": 0, "outcomes": 50, "error": "", "model_versions": {digest: 50}}
        with pytest.raises(UserError, match="use fractions"):
            replay_window(here, definition, Window.parse("2024-01-01..2024-02-01"), 0, None, 0, lambda _: None)
    assert bundles.find(environment.model(synthetic.MODEL), "") == digest
    logs = {kind: environment.store.keys(f"{kind}/{synthetic.MODEL}") for kind in ("predictions", "outcomes")}
    arrived = {
        kind: [raw for key in keys for raw in log_schema.lines(environment.store.get(key) or b"")]
        for kind, keys in logs.items()
    }
    asked = [msgspec.json.decode(raw, type=log_schema.PredictionRecord).at for raw in arrived["predictions"]]
    known = [msgspec.json.decode(raw, type=log_schema.OutcomeRecord).at for raw in arrived["outcomes"]]
    assert (len(asked), len(known)) == (50, 50)
    assert max(asked) <= min(known)
