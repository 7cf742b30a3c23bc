"""Rows of the prediction log to train on: as load() would give them, and why they are refused."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import polars as pl
import pytest

from mlops.bundle import Bundle
from mlops.contract import Contract
from mlops.environment import Environment
from mlops.registered_model import RegisteredModel
from mlops.releases import now
from monitoring.compaction import compact
from monitoring.frames import KINDS
from monitoring.fresh import Fresh, read_fresh
from monitoring.retention import forget
from tests import live_log, synthetic
from tests.live_log import Traffic
from training import data
from training.validation import typed

CONTRACT = Contract.model_validate(live_log.contract_yaml())
FRAME = live_log.live(live_log.rows())
DAYS: list[date] = FRAME["at"].dt.date().unique().sort().to_list()


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return synthetic.build(CONTRACT, live_log.rows())


@pytest.fixture
def model(environment: Environment, bundle: Bundle) -> RegisteredModel:
    return live_log.serve(environment, bundle)


def changed(**features: Any) -> Contract:
    """The contract with other settings of some features."""
    made = live_log.contract_yaml()
    made["features"] |= {name: made["features"][name] | more for name, more in features.items()}
    return Contract.model_validate(made)


def fresh(model: RegisteredModel, traffic: Traffic | None = None, contract: Contract = CONTRACT) -> Fresh:
    if traffic:
        traffic.log(model)
    return read_fresh(model, contract, DAYS)


def as_loaded(rows: pl.DataFrame) -> pl.DataFrame:
    """What load() gives, but for moments that a request does not have."""
    rows = data.select(typed(rows, CONTRACT)[0], CONTRACT)
    return data.canonical(
        rows.with_columns(pl.lit(None, pl.Datetime("us", "UTC")).alias(name) for name in ("heat_at", "known_at"))
    )


def read(found: Fresh) -> pl.DataFrame:
    return data.canonical(typed(found.rows, CONTRACT)[0])


def test_rows_are_those_that_load_would_give(model: RegisteredModel) -> None:
    found = fresh(model, Traffic(FRAME))
    assert found.problems == []
    assert read(found).equals(as_loaded(FRAME))
    for kind in KINDS:
        assert compact(model, kind, now() + timedelta(hours=2)).rows == FRAME.height
    assert read(fresh(model)).equals(as_loaded(FRAME)), "as Parquet too"


def test_days_that_have_not_matured_and_rows_without_outcome_are_left_out(model: RegisteredModel) -> None:
    traffic = Traffic(FRAME)
    traffic.values[::20] = [None] * len(traffic.values[::20])
    traffic.log(model)
    found = read_fresh(model, CONTRACT, DAYS[:-3])
    known = FRAME.with_row_index().filter(pl.col("index") % 20 != 0).drop("index")
    assert found.problems == []
    assert read(found).equals(as_loaded(known.filter(known["at"].dt.date() <= DAYS[-4])))


@pytest.mark.parametrize("kind", live_log.POISON)
def test_a_poisoned_window_is_refused_for_its_one_reason(model: RegisteredModel, kind: str) -> None:
    poison, reason = live_log.POISON[kind]
    traffic = Traffic(FRAME)
    poison(traffic)
    [problem] = fresh(model, traffic).problems
    assert reason in problem


def test_a_service_with_one_key_or_few_entities_is_fine(model: RegisteredModel) -> None:
    four = FRAME.with_columns(customer=pl.col("customer").str.slice(-1).str.replace_all("[4-9]", "0"))
    assert fresh(model, Traffic(four, callers=["only"] * four.height)).problems == []


def test_few_rows_days_or_outcomes_are_refused(model: RegisteredModel) -> None:
    assert fresh(model).problems == ["0 rows have an outcome, 2000 are needed (retraining.min_rows)"]
    Traffic(FRAME).log(model)
    few = CONTRACT.model_copy(update={"retraining": CONTRACT.retraining.model_copy(update={"min_rows": 1000})})
    [problem] = read_fresh(model, few, DAYS[:20]).problems
    assert problem == "20 days have matured, 28 are needed to judge the result (gate.min_days)"
    [problem] = read_fresh(model, few, DAYS[:10]).problems
    assert problem == "600 rows have an outcome, 1000 are needed (retraining.min_rows)"
    unknown = Traffic(pl.concat([FRAME] * 2))
    unknown.values = [None] * len(unknown.values)
    unknown.log(model)
    [problem] = read_fresh(model, few, DAYS).problems
    assert problem == f"{FRAME.height} of {3 * FRAME.height} predictions have an outcome, half are needed"


def test_values_that_the_contract_now_calls_impossible_are_refused(model: RegisteredModel) -> None:
    [problem] = fresh(model, Traffic(FRAME), changed(size={"range": [-1, 1]})).problems
    assert problem.endswith("are impossible by the contract, 1% are allowed")


def test_outcomes_that_are_all_the_same_are_refused(model: RegisteredModel) -> None:
    assert fresh(model, Traffic(FRAME, values=[1.0] * FRAME.height)).problems == ["all outcomes are 1"]


@pytest.mark.parametrize("how", ["hash", "drop"])
def test_a_log_that_lacks_values_is_no_training_data(model: RegisteredModel, how: str) -> None:
    found = fresh(model, Traffic(FRAME), changed(color={"log": how}, group={"log": how}))
    assert found.problems == ["the log lacks values of color, group (log: hash or drop, in the contract)"]
    assert found.rows.height == 0


def test_days_before_a_feature_was_asked_for_are_left_out(environment: Environment, bundle: Bundle) -> None:
    """A model before this one did not have `size`: what it logged is no reason to refuse what this one logs."""
    narrow = live_log.contract_yaml()
    del narrow["features"]["size"]
    before = live_log.serve(environment, synthetic.build(Contract.model_validate(narrow), live_log.rows()))
    first = FRAME["at"].dt.date() <= DAYS[4]
    Traffic(FRAME.filter(first).drop("size")).log(before)
    found = fresh(live_log.serve(environment, bundle), Traffic(FRAME.filter(~first)))
    assert found.problems == []
    assert read(found).equals(as_loaded(FRAME.filter(~first)))


def test_who_is_to_be_forgotten_is_in_no_training_set(model: RegisteredModel) -> None:
    Traffic(FRAME).log(model)
    forget(model, CONTRACT, "c7", "asked for")
    Traffic(FRAME).log(model)  # from another service, that was not told
    found = fresh(model)
    assert found.problems == []
    others = FRAME.filter(pl.col("customer") != "c7")
    assert others.height < FRAME.height
    assert read(found).equals(as_loaded(pl.concat([others, others])))


def test_amounts_that_run_against_the_scores_are_refused_too(environment: Environment) -> None:
    contract = Contract.model_validate(live_log.contract_yaml("regression"))
    model = live_log.serve(environment, synthetic.build(contract, live_log.rows()))
    right, wrong = Traffic(FRAME, "amount"), Traffic(FRAME, "amount")
    wrong.values = [-(value or 0.0) for value in wrong.values]
    assert fresh(model, right, contract).problems == []
    for key in model.store.keys("predictions"):
        model.store.delete(key)
    [problem] = fresh(model, wrong, contract).problems
    assert "rank the outcomes backwards" in problem
