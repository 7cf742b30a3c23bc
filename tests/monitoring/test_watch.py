"""Whether it is time for a new model, and why: what the contract says of the matured days of the log."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import polars as pl
import pytest

from mlops import promotion
from mlops.bundle import Bundle, canonical
from mlops.contract import Contract
from mlops.environment import Environment
from mlops.releases import now
from mlops.retraining import Event
from monitoring.daily import Days
from monitoring.quality import Estimate, Quality
from monitoring.watch import Watch, Watched, due
from tests import live_log, synthetic
from tests.live_log import Traffic

CONTRACT = Contract.model_validate(live_log.contract_yaml())
ENOUGH = CONTRACT.recalibration_days
FIRST = synthetic.START.date() + timedelta(live_log.KNOWN)  # of the log
NOTHING: Any = None  # of no interest here
GAP = Estimate(-0.08, -0.1, -0.06, -8.0)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return synthetic.build(CONTRACT, live_log.rows())


def watched(
    bundle: Bundle, days: int = ENOUGH, gap: Estimate | None = None, contract: Contract = CONTRACT, origin: Any = None
) -> Watched:
    """`days` that have matured, from the first of the log on; `origin`: changes of the champion's provenance."""
    told = canonical(bundle.json("provenance.json") | (origin or {}))
    champion = Bundle(bundle.files | {"contract.json": contract.json_bytes(), "provenance.json": told})
    quality = Quality("a" * 64, pl.DataFrame(), 14, None, gap, None)
    matured = [FIRST + timedelta(each) for each in range(days)]
    return Watched(now(), champion, Days({}, pl.DataFrame(), pl.DataFrame()), matured, NOTHING, quality)


def windows(train: date, holdout: date) -> dict[str, Any]:
    """Of the champion's training: the days after their last ones."""
    return {"windows": {"train": f"2024-01-01..{train}", "holdout": f"2024-01-01..{holdout}"}}


def event(day: date, action: str = "retrain", result: str = "passed", digest: str | None = "b" * 64) -> Event:
    return Event.model_validate({
        "run": "r", "event": result, "action": action, "day": day, "at": now(), "by": "x", "why": "y", "host": "h", "pid": 1,
        "digest": digest,
    })  # fmt: skip


def changed(**rules: Any) -> Contract:
    return Contract.model_validate(live_log.contract_yaml(retraining=rules))


def test_a_gap_is_recalibrated_first(bundle: Bundle) -> None:
    assert due(watched(bundle, gap=GAP), []) == (
        "recalibrate",
        "scores lie -0.080 from outcomes (z = -8.0) over 14 days",
    )


@pytest.mark.parametrize("small", [Estimate(-0.02, -0.021, -0.019, -30.0), Estimate(-0.08, -0.2, 0.04, -1.4)])
def test_a_gap_that_is_small_or_may_be_chance_is_none(bundle: Bundle, small: Estimate) -> None:
    assert due(watched(bundle, gap=small, contract=changed(every_days=0)), []) is None


def test_a_recalibrated_champion_with_a_gap_is_trained_again(bundle: Bundle) -> None:
    action, why = due(watched(bundle, gap=GAP, origin={"recalibration": {"of": "x"}}), []) or ("", "")
    assert (action, why.endswith("over 14 days; a recalibration was not enough")) == ("retrain", True)


@pytest.mark.parametrize(("newest", "action"), [
    (event(FIRST, "recalibrate", "refused"), "retrain"),  # the gate does not want it
    (event(FIRST, "recalibrate", "passed"), "retrain"),  # the champion is without it: the judge did not want it
    (event(FIRST, "recalibrate", "refused", None), "recalibrate"),  # for its rows
    (event(FIRST, "recalibrate", "failed", None), "recalibrate"),
    (event(FIRST, "retrain", "refused"), "recalibrate"),
])  # fmt: skip
def test_what_was_in_vain_is_not_repeated_for_ever(bundle: Bundle, newest: Event, action: str) -> None:
    found = due(watched(bundle, gap=GAP), [newest])
    assert found
    assert found[0] == action


def test_the_calendar_counts_from_what_was_trained_last(bundle: Bundle) -> None:
    """By the platform, or by hand: then the champion's windows tell; what was before the log does not count."""
    assert due(watched(bundle, 29), []) is None
    assert due(watched(bundle, 30), []) == ("retrain", "30 days since the last training, every 30 days there is one")
    by_hand = windows(FIRST, FIRST + timedelta(10))
    assert due(watched(bundle, 39, origin=by_hand), []) is None
    assert due(watched(bundle, 40, origin=by_hand), [])
    own = event(FIRST + timedelta(5))
    assert due(watched(bundle, 34), [own]) is None
    assert due(watched(bundle, 35), [own])
    no_training = event(FIRST + timedelta(5), "recalibrate"), event(FIRST + timedelta(5), result="refused")
    assert all(due(watched(bundle, 33), [each]) for each in no_training)


def test_a_contract_may_want_no_calendar_or_nothing_at_all(bundle: Bundle) -> None:
    assert due(watched(bundle, 60, contract=changed(every_days=0)), []) is None
    assert due(watched(bundle, 60, GAP, changed(every_days=0)), [])
    assert due(watched(bundle, 60, GAP, changed(max_a_year=0)), []) is None


@pytest.mark.parametrize(("result", "ago", "free"), [
    ("started", 0, False), ("passed", 27, False), ("passed", 28, True), ("failed", 6, False), ("failed", 7, True),
])  # fmt: skip
def test_none_is_due_while_one_runs_or_the_pause_lasts(bundle: Bundle, result: str, ago: int, free: bool) -> None:
    last = event(FIRST + timedelta(ENOUGH - ago), result=result)
    assert (due(watched(bundle, gap=GAP), [last]) is not None) == free


def test_none_is_due_before_the_gate_could_compare_it_with_the_champion(bundle: Bundle) -> None:
    """A recalibration is judged as it would have been used, so it needs more days than those that are held out."""
    rare, least = changed(every_days=0), CONTRACT.gate.min_days
    seen = windows(FIRST + timedelta(20), FIRST)
    again = seen | {"recalibration": {}}
    for origin, days in ((None, ENOUGH), (seen, ENOUGH + 20), (again, least + 20), ({"recalibration": {}}, least)):
        assert due(watched(bundle, days - 1, GAP, rare, origin), []) is None
        assert due(watched(bundle, days, GAP, rare, origin), [])
    timeless = {"windows": {"train": "0.0..0.7", "holdout": "0.7..1.0"}}
    assert due(watched(bundle, ENOUGH, GAP, rare, timeless), []), "nobody knows which rows were seen"
    assert due(watched(bundle, 0, GAP), []) is None


def test_a_log_whose_outcomes_moved_away_from_the_scores_is_seen(environment: Environment, bundle: Bundle) -> None:
    model = environment.model(synthetic.MODEL)
    assert Watch(model).look() is None
    promotion.release(model, synthetic.publish(environment, bundle), "first")
    watch, frame = Watch(model), live_log.live(live_log.rows())
    early = pl.col("at").dt.date() < FIRST + timedelta(27)
    Traffic(frame.filter(early)).log(model)
    found = watch.look()
    assert found
    assert found.matured == [FIRST + timedelta(each) for each in range(len(found.matured))]
    assert found.unseen == found.matured
    assert found.today == FIRST + timedelta(len(found.matured)) >= FIRST + timedelta(25)
    assert due(found, []) is None
    Traffic(live_log.shifted(frame.filter(~early))).log(model)
    found = watch.look()
    assert found
    action, why = due(found, []) or ("", "")
    assert (action, why.startswith("scores lie -0.")) == ("recalibrate", True)
