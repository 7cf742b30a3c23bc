"""Trainings that the platform starts by itself: one at a time, with pauses, each recorded and ended once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import date, timedelta
from multiprocessing import get_context
from threading import Barrier
from typing import Any

import pytest

from mlops.contract import Retraining
from mlops.environment import Environment
from mlops.errors import ConflictError, UserError
from mlops.registered_model import RegisteredModel
from mlops.releases import now
from mlops.retraining import RetrainingLog, newest_result, pause, running

MODEL, DAY = "churn", date(2024, 6, 1)
RULES = Retraining()


@pytest.fixture
def model(environment: Environment) -> RegisteredModel:
    return environment.model(MODEL)


@pytest.fixture
def log(model: RegisteredModel) -> RetrainingLog:
    return RetrainingLog(model)


def ended(log: RetrainingLog, result: Any, day: date = DAY) -> None:
    log.end(log.begin(RULES, "retrain", "calendar", day), result, "why")


def put(model: RegisteredModel, revision: int, content: bytes) -> None:
    model.store.put(f"{model.folder}/retrainings/{revision:08d}.json", content)


def trigger(model: RegisteredModel, start: Any) -> str:
    start()
    try:
        return RetrainingLog(model).begin(RULES, "recalibrate", "gap", DAY).run
    except UserError as error:
        return "conflict" if isinstance(error, ConflictError) else error.hint[:3]


def triggered(model: RegisteredModel, triggers: int) -> list[str]:
    """So many at once, in threads: the run's id for whoever began one."""
    together = Barrier(triggers)
    with ThreadPoolExecutor(triggers) as threads:
        return list(threads.map(lambda _: trigger(model, together.wait), range(triggers)))


def test_of_a_hundred_triggers_at_once_one_begins(model: RegisteredModel) -> None:
    """In four processes with 25 threads each."""
    with ProcessPoolExecutor(4, get_context("spawn")) as pool:
        told = Counter(each for found in pool.map(triggered, [model] * 4, [25] * 4) for each in found)
    [event] = RetrainingLog(model).read()
    assert told.pop(event.run) == 1
    assert told.pop("conflict", 0) + told.pop("run", 0) == 99, "the others were told: by whom, or that one is running"
    assert not told


def test_a_run_is_recorded_from_its_beginning_to_its_end(log: RetrainingLog, model: RegisteredModel) -> None:
    started = log.begin(RULES, "retrain", "30 days", DAY)
    assert running(log.read()) == started
    assert (started.event, started.action, started.day, started.pid) == ("started", "retrain", DAY, os.getpid())
    with pytest.raises(UserError, match=f"run {started.run} is in progress since .* on {started.host}"):
        log.begin(RULES, "retrain", "again", DAY)
    log.end(started, "passed", "30 days", "a" * 64)
    log.end(started, "failed", "too late")
    [first, last] = RetrainingLog(model).read()
    assert (first, last.event, last.digest, last.why) == (started, "passed", "a" * 64, "30 days")
    assert newest_result([first, last]) == last
    assert newest_result([first]) is None


def test_who_ends_a_run_at_the_same_time_ends_it_once(log: RetrainingLog, model: RegisteredModel) -> None:
    started, together = log.begin(RULES, "retrain", "gap", DAY), Barrier(8)

    def end(number: int) -> None:
        own = RetrainingLog(model)
        own.read()
        together.wait()
        own.end(started, "failed", f"number {number}")

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(end, range(8)))
    assert [event.event for event in log.read()] == ["started", "failed"]


@pytest.mark.parametrize(("result", "days"), [("passed", 28), ("refused", 7), ("failed", 7)])
def test_the_pause_is_counted_in_days_of_the_log(log: RetrainingLog, result: str, days: int) -> None:
    ended(log, result)
    over = DAY + timedelta(days)
    assert pause(RULES, log.read(), over - timedelta(1)).endswith(f"{result} on {DAY}; the next may start on {over}")
    assert pause(RULES, log.read(), over) == ""
    with pytest.raises(UserError, match="the next may start on"):
        log.begin(RULES, "retrain", "by hand", over - timedelta(1))


def test_a_short_cooldown_is_that_of_failures_too(log: RetrainingLog) -> None:
    ended(log, "failed")
    assert pause(Retraining(cooldown_days=2), log.read(), DAY + timedelta(2)) == ""


def test_a_years_budget_counts_every_run(log: RetrainingLog) -> None:
    for number in range(12):
        ended(log, "failed" if number % 2 else "passed", DAY + timedelta(28 * number))
    for days, free in ((28 * 12, False), (364, False), (365, True)):
        assert (pause(RULES, log.read(), DAY + timedelta(days)) == "") == free
    assert pause(Retraining(max_a_year=0), [], DAY) == "0 runs within a year are allowed (retraining.max_a_year)"


def test_one_whose_process_died_is_given_up_and_one_that_lives_is_not(
    log: RetrainingLog, model: RegisteredModel
) -> None:
    started = log.begin(RULES, "retrain", "gap", DAY)
    log.give_up()
    assert running(log.read()) == started
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    put(model, 1, started.model_copy(update={"pid": dead.pid}).model_dump_json().encode())
    again = RetrainingLog(model)
    again.give_up()
    [_, last] = again.read()
    assert (last.event, last.why, last.pid) == ("failed", "it was killed before it ended", dead.pid)
    again.give_up()
    assert len(again.read()) == 2


@pytest.mark.parametrize(("hours", "given_up"), [(5, False), (7, True)])
def test_one_of_another_machine_is_given_up_when_it_cannot_be_at_work_any_more(
    log: RetrainingLog, model: RegisteredModel, hours: int, given_up: bool
) -> None:
    started = log.begin(RULES, "retrain", "gap", DAY)
    elsewhere = {"host": "training-1234", "pid": 1, "at": now() - timedelta(hours=hours)}
    put(model, 1, started.model_copy(update=elsewhere).model_dump_json().encode())
    again = RetrainingLog(model)
    again.give_up()
    assert (running(again.read()) is None) == given_up


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff{", b'{"run": 1}', b"x" * (3 * 2**20)])
def test_an_unreadable_record_counts_as_never_written(
    log: RetrainingLog, model: RegisteredModel, content: bytes
) -> None:
    ended(log, "passed")
    put(model, 3, content)
    later = DAY + timedelta(28)
    started = log.begin(RULES, "retrain", "calendar", later)
    assert model.store.get(f"{model.folder}/retrainings/00000003.json") == content
    put(model, 5, content)
    log.end(started, "refused", "gate")
    assert [event.event for event in RetrainingLog(model).read()] == ["started", "passed", "started", "refused"]


def test_reading_fetches_what_is_new(
    log: RetrainingLog, model: RegisteredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The controller reads it every ten seconds, for years."""
    for number in range(5):
        ended(log, "passed", DAY + timedelta(28 * number))
    asked: list[str] = []
    get = type(model.store).get
    monkeypatch.setattr(type(model.store), "get", lambda *words: asked.append(words[1]) or get(*words))
    assert len(log.read()) == 10
    assert len(asked) == 1


def test_reasons_are_kept_short(log: RetrainingLog) -> None:
    log.end(log.begin(RULES, "retrain", "x" * 5000, DAY), "failed", "y" * 5000)
    assert [len(event.why) for event in log.read()] == [1000, 1000]
