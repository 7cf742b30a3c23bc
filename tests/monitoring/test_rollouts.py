"""Rollouts by the real controller, over a log as the app would write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlops import promotion, releases, rollout
from mlops.attestations import attest
from mlops.bundle import Bundle
from mlops.environment import Environment
from mlops.releases import Mode, Release
from mlops.store import Store
from tests.control import Control
from tests.proofs import closed
from tests.proofs import rollouts as canaries
from tests.rollout_log import Log, Rows
from tests.synthetic import MODEL, publish


@pytest.fixture
def digests(environment: Environment, first_bundle: Bundle, second_bundle: Bundle) -> list[str]:
    found = [publish(environment, bundle) for bundle in (first_bundle, second_bundle)]
    model = environment.model(MODEL)
    attest(model, "approved", found[0], verdict="passed", environment=environment.name)
    model.releases.append(found[0], "first")
    return found


def begin(environment: Environment, digests: list[str], mode: Mode = "shadow", **more: Any) -> Release:
    return rollout.begin(environment.model(MODEL), *digests, "test", mode=mode, **more)


def now_serving(environment: Environment) -> Release:
    found = releases.serving(environment.model(MODEL).releases.read(), releases.now())
    assert found
    return found


def steps(environment: Environment) -> list[tuple[str, float | None]]:
    return [(release.mode, release.weight) for release in environment.model(MODEL).releases.read()]


def test_an_honest_challenger_is_promoted_step_by_step(environment: Environment, digests: list[str]) -> None:
    controller, log = Control(environment, MODEL), Log(environment.store)
    begin(environment, digests)
    for step in range(6):
        controller.judge()
        controller.judge()  # nothing new: no step
        log.write(now_serving(environment), Rows(days=9, seed=step))
        controller.judge()
    weights = [0.01, 0.05, 0.25, 0.5, 1.0]
    assert steps(environment) == [
        ("full", None),
        ("shadow", None),
        *(("canary", weight) for weight in weights),
        ("full", None),
    ]
    assert now_serving(environment).champion == digests[1]
    rollouts = {release.rollout for release in environment.model(MODEL).releases.read() if release.in_rollout}
    assert len(rollouts) == 1
    verdicts = rollout.read_verdicts(environment.model(MODEL), rollouts.pop())
    assert {verdict["decision"] for verdict in verdicts} == {"inconclusive", "advance"}
    assert all(check["why"] for verdict in verdicts for check in verdict["checks"])
    controller.judge()
    assert controller.controller.metrics.registry.get_sample_value("mlops_rollout_step_timestamp_seconds") == 0


def inverted(seed: int = 0) -> Rows:
    rows = Rows(seed=seed)
    rows.challenger = 1 - rows.challenger
    return rows


@pytest.mark.parametrize("weight", [None, 0.5])
def test_a_bad_one_is_aborted_and_the_log_has_the_reason(
    environment: Environment, digests: list[str], weight: float | None
) -> None:
    release = begin(environment, digests, "canary" if weight else "shadow", weight=weight)
    Log(environment.store).write(release, inverted())
    controller = Control(environment, MODEL)
    controller.judge()
    last = now_serving(environment)
    assert (last.mode, last.champion) == ("full", digests[0])
    assert "correlate" in last.why
    assert controller.approver.registry.get_sample_value("mlops_release_steps_total", {"step": "abort"}) == 1


def test_a_paused_rollout_may_be_aborted_but_advances_only_when_resumed(
    environment: Environment, digests: list[str]
) -> None:
    controller, log = Control(environment, MODEL), Log(environment.store)
    begin(environment, digests)
    paused = rollout.set_paused(environment.model(MODEL), True, "let me see")
    log.write(paused, Rows(days=9))
    controller.judge()
    assert now_serving(environment).revision == paused.revision
    resumed = rollout.set_paused(environment.model(MODEL), False, "go on")
    assert (resumed.rollout, resumed.mode) == (paused.rollout, "shadow")
    log.write(resumed, Rows(days=9))
    controller.judge()
    assert now_serving(environment).weight == 0.01
    paused = rollout.set_paused(environment.model(MODEL), True, "let me see")
    log.write(paused, inverted())
    controller.judge()
    assert now_serving(environment).mode == "full"


def test_a_rollback_during_a_rollout_keeps_the_champion(environment: Environment, digests: list[str]) -> None:
    begin(environment, digests, "canary", weight=0.5)
    back = promotion.rollback(environment.model(MODEL), "no")
    assert (back.mode, back.champion, back.challenger) == ("full", digests[0], None)


def test_an_a_b_test_and_a_cohort_are_ended_by_people(environment: Environment, digests: list[str]) -> None:
    for mode, cohort in (("ab", None), ("canary", {"color": "red"})):
        release = begin(environment, digests, mode, weight=0.5, cohort=cohort)
        rows = Rows(days=20)
        rows.challenger = rows.y * 0.8 + 0.1  # it knows the outcome
        Log(environment.store).write(release, rows)
        Control(environment, MODEL).judge()
        assert now_serving(environment).revision == release.revision
        promotion.rollback(environment.model(MODEL), "next")


def test_two_controllers_write_one_record(
    environment: Environment, digests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    release = begin(environment, digests)
    Log(environment.store).write(release, Rows(days=9))
    one, other = Control(environment, MODEL), Control(environment, MODEL)
    put_new, again = Store.put_new, [other.judge]

    def the_other_first(self: Store, key: str, data: bytes) -> bool:
        if again:
            again.pop()()
        return put_new(self, key, data)

    monkeypatch.setattr(Store, "put_new", the_other_first)
    one.judge()
    assert steps(environment) == [("full", None), ("shadow", None), ("canary", 0.01)]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("bad", [False, True])
def test_a_controller_killed_at_any_call_to_the_bucket_continues(
    environment: Environment, digests: list[str], bad: bool
) -> None:
    """The record that is due is written once, whenever the controller before it was killed."""
    start = begin(environment, digests)
    Log(environment.store).write(start, inverted() if bad else Rows(days=9))
    call, died = 0, True
    while died:
        call += 1
        with pytest.MonkeyPatch.context() as patch:
            died = _dies_at(patch, call)
            try:
                Control(environment, MODEL).judge()
                died = False
            except Killed:
                died = True
        assert len(steps(environment)) in (2, 3)
    Control(environment, MODEL).judge()
    assert call > 5
    assert steps(environment)[2:] == ([("full", None)] if bad else [("canary", 0.01)])


def _dies_at(patch: pytest.MonkeyPatch, call: int) -> bool:
    left = [call]

    def dying(name: str):
        original = getattr(Store, name)

        def method(self: Store, *given, **named):
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return original(self, *given, **named)

        return method

    for name in ("get", "put", "put_new", "keys"):
        patch.setattr(Store, name, dying(name))
    return True


def test_missing_or_broken_data_never_advances(tmp_path: Path) -> None:
    assert closed.prove(tmp_path, times=1)["reason"] == ""


def test_a_bad_challenger_is_aborted_without_errors_for_callers(tmp_path: Path) -> None:
    found = canaries.prove(tmp_path, ("raises", "bad on one slice"), (0.5,))
    [at_once, by_outcomes] = found["runs"]
    assert (at_once["aborted"], at_once["errors"]) == (True, 0)
    assert by_outcomes["aborted"]
    assert by_outcomes["event_days"] <= canaries.DAYS
    assert "the loss changes by +" in by_outcomes["why"]
