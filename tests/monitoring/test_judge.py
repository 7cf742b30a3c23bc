"""The judge's decision on planted faults, on honest challengers, and on missing data."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from mlops import log_schema, releases
from mlops.contract import Contract
from mlops.keys import Keyring
from mlops.registered_model import RegisteredModel
from mlops.releases import Mode, Release
from mlops.store import Store
from mlops.verdict import Verdict
from monitoring.compaction import compact
from monitoring.evidence import Evidence
from monitoring.judge import judge
from monitoring.sums import Measures
from tests.rollout_log import Log, Rows
from tests.synthetic import MODEL, contract_yaml

CONTRACT = Contract.model_validate(contract_yaml())


@pytest.fixture
def model(tmp_path: Path) -> RegisteredModel:
    return RegisteredModel(MODEL, "local", Store(str(tmp_path / "bucket")), Keyring(tmp_path / "keyring.json"))


def evidence_of(model: RegisteredModel) -> Evidence:
    return Evidence(model, Measures(CONTRACT))


def record(mode: Mode = "canary", weight: float | None = 0.5, revision: int = 1) -> Release:
    return Release(
        revision=revision, at=releases.now() - timedelta(minutes=5), by="me", why="", nonce="0", mode=mode, champion="a" * 64,
        challenger="b" * 64, weight=None if mode == "shadow" else weight, rollout="x",
    )  # fmt: skip


def look(model: RegisteredModel, release: Release) -> Verdict:
    return judge(CONTRACT, release, evidence_of(model).look(1, release.at, releases.now()))


def inverted(rows: Rows) -> None:
    rows.challenger = 1 - rows.challenger


def constant(rows: Rows) -> None:
    rows.challenger[:] = 0.3


def shifted(rows: Rows) -> None:
    rows.challenger = 1 / (1 + np.exp(-(np.log(rows.challenger / (1 - rows.challenger)) + 4)))


def bad_on_one_slice(rows: Rows) -> None:
    rows.challenger = np.where(rows.color == "blue", 1 - rows.challenger, rows.challenger)


def failing(kind: str, every: int) -> Callable[[Rows], None]:
    def plant(rows: Rows) -> None:
        rows.fault = [kind if i % every == 0 else None for i in range(len(rows.y))]

    return plant


@pytest.mark.parametrize(
    ("plant", "days", "says"),
    [
        (failing("error", 1), 1, "failed"),
        (failing("nan", 30), 1, "failed"),
        (failing("died", 10), 1, "failed"),
        (failing("slow", 5), 2, "budget"),
        (inverted, 1, "correlate"),
        (constant, 1, "vary"),
        (shifted, 1, "its mean score differs by +"),
        (bad_on_one_slice, 21, "color=blue"),
        (lambda rows: None, 9, ""),
    ],
    ids=[
        "raises",
        "non-finite now and then",
        "dies now and then",
        "slow now and then",
        "inverted",
        "constant",
        "shifted",
        "one slice",
        "honest",
    ],
)
def test_a_planted_fault_is_named_and_an_honest_challenger_advances(
    model: RegisteredModel, plant: Callable[[Rows], None], days: int, says: str
) -> None:
    release, rows = record(), Rows(days=days)
    plant(rows)
    Log(model.store).write(release, rows)
    verdict = look(model, release)
    assert verdict.decision == ("abort" if says else "advance"), verdict.reasons
    assert any(says in reason for reason in verdict.reasons)


def test_a_challenger_that_is_worse_by_outcomes_alone_is_aborted(model: RegisteredModel) -> None:
    release = record()
    Log(model.store).write(release, Rows(days=16, worse=1.5))
    verdict = look(model, release)
    assert verdict.decision == "abort"
    assert "the loss changes by +" in verdict.reasons[0]


@pytest.mark.parametrize(
    ("mode", "weight", "days", "decision"),
    [
        ("shadow", None, 1, "advance"),
        ("canary", 0.01, 1, "advance"),
        ("canary", 0.05, 1, "inconclusive"),
        ("canary", 0.05, 9, "advance"),
        ("ab", 0.5, 9, "inconclusive"),
    ],
)
def test_outcomes_are_needed_before_high_weights_and_an_a_b_test_needs_a_gain(
    model: RegisteredModel, mode: Mode, weight: float | None, days: int, decision: str
) -> None:
    release = record(mode, weight)
    Log(model.store).write(release, Rows(days=days, a_day=600))
    assert look(model, release).decision == decision


@pytest.mark.parametrize(
    "missing", ["log", "outcomes", "rows at this weight", "scores", "a file", "days that are over"]
)
def test_missing_data_never_advances(model: RegisteredModel, missing: str) -> None:
    release, rows = record(), Rows(days=9)
    if missing == "scores":
        rows.fault = ["dropped"] * len(rows.y)
    if missing == "days that are over":
        rows = Rows(days=7)
    if missing != "log":
        keys = Log(model.store).write(record(revision=1), rows, outcomes=missing != "outcomes")
    if missing == "a file":
        body = msgspec.json.encode({"not": "ours"})
        model.store.put(keys[0].replace(".log", "x.log"), b"%08x %s\n" % (zlib.crc32(body), body))
    if missing == "rows at this weight":
        release = record(revision=2)
    assert look(model, release).decision == "inconclusive"


def test_arms_that_were_not_split_by_the_weight_never_advance(model: RegisteredModel) -> None:
    release, rows = record(), Rows(days=9)
    rows.draw = rows.draw + 0.1
    Log(model.store).write(release, rows)
    verdict = look(model, release)
    assert (verdict.decision, len(verdict.reasons)) == ("inconclusive", 1)
    assert "sample ratio mismatch" in verdict.reasons[0]


def test_looks_after_each_batch_and_one_look_at_the_end_see_the_same_compacted_or_not(model: RegisteredModel) -> None:
    release, log, evidence = record(), Log(model.store), evidence_of(model)
    for day in range(5):
        log.write(release, Rows(seed=day), first_day=day, outcomes=day != 2)
        stepwise = evidence.look(1, release.at, releases.now())
    model.store.put(  # late
        log_schema.segment_key("outcomes", MODEL, log.at.timestamp() + 3600, 0, "late"),
        b"".join(
            log_schema.line(log_schema.OutcomeRecord(id_, 1.0, log.at.timestamp() + 3600)) for id_ in log.ids[600:900]
        ),
    )
    stepwise = evidence.look(1, release.at, releases.now())
    assert stepwise.days["n"].to_list() == [300] * 5
    for kind in ("predictions", "outcomes"):
        compact(model, kind, releases.now() + timedelta(hours=5))
    assert not [key for key in model.store.keys("") if key.endswith(".log")]
    for seen in (evidence.look(1, release.at, releases.now()), evidence_of(model).look(1, release.at, releases.now())):
        for name in ("revisions", "days", "slices", "entities"):
            one, other = (getattr(each, name) for each in (stepwise, seen))
            keys = [column for column in one.columns if one[column].dtype in (pl.String, pl.Date, pl.Int64)]
            assert_frame_equal(one.sort(keys), other.select(one.columns).sort(keys), check_exact=False)


def test_a_second_look_reads_only_what_is_new(model: RegisteredModel, monkeypatch: pytest.MonkeyPatch) -> None:
    release, log, evidence = record(), Log(model.store), evidence_of(model)
    log.write(release, Rows())
    evidence.look(1, release.at, releases.now())
    read: list[str] = []
    get = Store.get
    monkeypatch.setattr(Store, "get", lambda self, key, limit=None: read.append(key) or get(self, key, limit))
    evidence.look(1, release.at, releases.now())
    assert read == []
    new = log.write(release, Rows(seed=1))
    evidence.look(1, release.at, releases.now())
    assert sorted(read) == sorted(new)


def test_rows_of_a_clock_that_is_ahead_and_of_other_releases_do_not_count(model: RegisteredModel) -> None:
    release = record(revision=2)
    Log(model.store).write(record(revision=1), Rows())
    ahead = Log(model.store, at=releases.now() + timedelta(minutes=30))
    ahead.write(release, Rows())
    assert judge(CONTRACT, release, evidence_of(model).look(2, release.at, releases.now())).rows == 0


@pytest.mark.parametrize(
    ("days", "worse", "outcome"), [(27, 0.0, "inconclusive"), (28, 0.0, "pass"), (28, 0.04, "inconclusive")]
)
def test_an_honest_challenger_is_not_kept_waiting_for_months(
    model: RegisteredModel, days: int, worse: float, outcome: str
) -> None:
    """At any look its interval is too wide; on 28 days there is one look more."""
    random = np.random.default_rng(3)
    by_day = random.normal(scale=0.07, size=days)
    by_day += worse - by_day.mean()
    first = date(2024, 6, 1)
    last = datetime.combine(first, time(), UTC).timestamp() + 86400.0 * (days + 5)  # the log goes on
    frame = pl.DataFrame({"day": [first + timedelta(days=day) for day in range(days)], "d": 100 * by_day})
    frame = frame.with_columns(caller=pl.lit(None, pl.String), n=100, rows=100, n0=0, n1=0, l0=0.0, l1=0.0, last=last)
    sums = replace(evidence_of(model).look(1, releases.now(), releases.now()), days=frame)
    verdict = judge(CONTRACT, record(weight=0.05), sums)
    found = {check.name: check for check in verdict.checks}["loss"]
    assert found.outcome == outcome, found.why
    assert (verdict.decision == "abort") == (days == 28 and outcome != "pass"), "then it makes way for a newer model"
    paused = judge(CONTRACT, record(weight=0.05).model_copy(update={"paused": True}), sums)
    assert paused.decision == "inconclusive"
