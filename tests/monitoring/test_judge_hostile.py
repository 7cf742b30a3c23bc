"""What callers may write does not decide what the judge says of others' rows."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops import releases
from mlops.contract import Contract
from mlops.keys import Keyring
from mlops.registered_model import RegisteredModel
from mlops.releases import Release
from mlops.store import Store
from mlops.verdict import Verdict
from monitoring import evidence as evidences
from monitoring.evidence import Evidence
from monitoring.judge import judge, mature, usual_size
from monitoring.partitions import OUTCOMES
from monitoring.sums import Measures, Sums, add_up
from tests.proofs import verdictsfuzz
from tests.rollout_log import Log, Rows
from tests.synthetic import MODEL, contract_yaml

CONTRACT = Contract.model_validate(contract_yaml())
NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
MEASURES = Measures(CONTRACT)
RELEASE = Release(
    revision=1, at=NOW - timedelta(days=30), by="me", why="", nonce="0", mode="canary", champion="a" * 64, challenger="b" * 64, weight=0.5, rollout="x",
)  # fmt: skip


def rows_of(caller: str | None, n: int, event: Any, **columns: Any) -> pl.DataFrame:
    """Of a caller; both models' scores agree more or less, unless told otherwise."""
    random = np.random.default_rng(n)
    logit = random.normal(size=n)
    scores = {
        name: 1 / (1 + np.exp(-(logit + 0.4 * random.normal(size=n))))
        for name in ("champion_score", "challenger_score")
    }
    found: dict[str, Any] = {
        "id": [f"{caller} {i}" for i in range(n)], "at": NOW.timestamp() - 3600 + np.arange(n) / 1e3, "event": np.broadcast_to(event, n),
        "revision": 1, "arm": np.arange(n) % 2, "caller": caller, "entity": [f"{caller} {i}" for i in range(n)], "fault": None,
        "challenger_seconds": 0.001, "feature.color": "red", "feature.region": "north",
        "value": (random.random(n) < 1 / (1 + np.exp(-logit))).astype(float),
    } | scores | columns  # fmt: skip
    return pl.DataFrame(found | {"score": found["champion_score"]}, strict=False)


def honest(days: int = 10, a_day: int = 100, **columns: Any) -> pl.DataFrame:
    event = NOW.timestamp() - 86400 * (days - np.arange(days * a_day) / a_day)
    return rows_of("honest", days * a_day, event, **columns)


def sums_of(*parts: pl.DataFrame, measures: Measures = MEASURES) -> Sums:
    rows, schema = pl.concat(parts, how="vertical_relaxed"), measures.columns
    told = rows.select("id", "value", "at", "caller", changed=pl.lit(value=False)).cast(pl.Schema(OUTCOMES))
    found = measures.sums(rows.select(*schema).cast(pl.Schema(schema)), told, 1, NOW)
    return add_up([found], found.entities, 0)


def verdict(*parts: pl.DataFrame) -> Verdict:
    return judge(CONTRACT, RELEASE, sums_of(*parts))


def recent_fault(days: int = 10, a_day: int = 2000) -> pl.DataFrame:
    """Too few to be seen since the start."""
    n = days * a_day
    return honest(days, a_day, fault=[None] * (n - 24) + ["error"] * 24)


@pytest.mark.parametrize("caller", ["honest", "hostile"])
def test_rows_dated_ahead_do_not_stand_for_what_happens_now(caller: str) -> None:
    assert verdict(recent_fault()).decision == "abort"
    ahead = rows_of(caller, 60, datetime(2030, 1, 1, tzinfo=UTC).timestamp())
    found = verdict(recent_fault(), ahead)
    assert found.decision == "abort"
    assert any("24 of" in reason and "lately" in reason for reason in found.reasons)


def test_rows_on_which_both_models_agree_do_not_hide_an_inverted_challenger() -> None:
    rows = honest(value=None)  # outcomes would tell
    rows = rows.with_columns(challenger_score=1 - pl.col("champion_score"))
    same = np.arange(1000) % 2 * 1.0
    agreed = rows_of("hostile", 1000, rows["event"].to_numpy(), champion_score=same, challenger_score=same, value=None)
    assert verdict(rows, agreed).decision == "abort"


def test_outcomes_of_one_caller_do_not_pay_for_the_loss_of_others() -> None:
    worse = honest(challenger_score=np.random.default_rng(1).random(1000))
    value = np.arange(1000) % 2 * 1.0
    paid = rows_of(
        "hostile", 1000, worse["event"].to_numpy(), champion_score=1 - value, challenger_score=value, value=value
    )
    found = verdict(worse, paid)
    assert found.decision != "advance"
    assert any("without API key hostile" in reason for reason in found.reasons)


def test_made_up_levels_do_not_hide_a_slice() -> None:
    wrong = 0.7 * np.arange(8000) % 2 < 1  # of the slice
    rows = honest(40, 200)
    bad = pl.when(pl.Series(wrong)).then(1 - pl.col("champion_score")).otherwise("challenger_score")
    rows = rows.with_columns(
        pl.Series("feature.color", np.where(wrong, "blue", "red")), challenger_score=bad, arm=pl.col("arm")
    )
    levels = [f"level {i % 300}" for i in range(8000)]
    made_up = rows_of("hostile", 8000, rows["event"].to_numpy(), **{"feature.color": levels})
    sums = sums_of(rows, made_up)
    assert sums.slices.filter(slice="color", caller="hostile")["level"].n_unique() == 100
    assert any("color=blue" in check.name and check.failed for check in judge(CONTRACT, RELEASE, sums).checks)


def test_many_days_with_a_row_each_are_no_evidence_and_no_clock() -> None:
    ahead = NOW.timestamp() + 86400 * np.arange(1, 301)
    days = sums_of(honest(), rows_of("honest", 300, ahead)).days
    assert mature(CONTRACT, days)["day"].max() == date(2026, 5, 30)
    assert mature(CONTRACT, days).height == mature(CONTRACT, sums_of(honest()).days).height
    assert usual_size(np.array([300] * 10 + [1] * 60)) == 300


def test_days_of_one_caller_are_bounded() -> None:
    spread = rows_of("hostile", 5000, np.arange(5000) * 86400.0)
    sums = sums_of(honest(), spread)
    assert sums.days.filter(caller="hostile").height <= 401
    assert sums.days.filter(caller="honest").height == sums_of(honest()).days.height
    assert sums.days["rows"].sum() == 6000, "none is lost"


@pytest.mark.parametrize("event", [-1.0, 7_258_118_400.0, 253_402_300_799.0, 1e300, np.nan, np.inf, -np.inf])
def test_a_moment_that_is_none_counts_as_the_arrival(event: float) -> None:
    assert set(sums_of(rows_of("a", 5, event)).days["day"]) == {NOW.date()}


def test_entities_are_kept_as_a_sample_that_still_shows_the_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidences, "_MAX_ENTITIES", 500)
    model = RegisteredModel(MODEL, "local", Store(str(tmp_path / "bucket")), Keyring(tmp_path / "keyring.json"))
    release = RELEASE.model_copy(update={"at": releases.now() - timedelta(minutes=5)})
    Log(model.store).write(release, Rows(days=9, a_day=400))
    found = Evidence(model, MEASURES).look(1, release.at, releases.now()).entities["entities"].to_list()
    assert 200 < sum(found) <= 500
    assert min(found) > 0.3 * sum(found)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_there_is_always_a_verdict_and_none_advances_a_planted_harm(seed: int) -> None:
    found = verdictsfuzz.outcome(seed)
    assert not found.startswith("raised")
    assert found == "no harm: advance" or not found.endswith(": advance")
