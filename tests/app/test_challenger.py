"""A challenger that misbehaves, in its process of its own."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.challenger import Challenger
from mlops.bundle import Bundle
from mlops.model import Model
from tests import planted, synthetic

GOOD, BAD = synthetic.request(size=0.1), synthetic.request(size=2.0)


class Asked(Challenger):
    """As the tests ask it: from outside its event loop."""

    def score(self, requests: Any, seconds: float) -> Any:
        return asyncio.run_coroutine_threadsafe(super().score(requests, seconds), self._loop).result(60)


@pytest.fixture
def start(first_bundle: Bundle) -> Iterator[Callable[..., Asked]]:
    started: list[Asked] = []
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def make(kind: str = "", budget_ms: float = 2000, memory_mb: int = 512) -> Asked:
        bundle = planted.plant(first_bundle, kind) if kind else first_bundle
        started.append(Asked(bundle, bundle.digest, budget_ms, memory_mb, loop))
        return started[-1]

    yield make
    for challenger in started:
        challenger.close()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(scope="module")
def row(first_bundle: Bundle) -> Callable[[dict[str, Any]], Any]:
    return Model(first_bundle, "").schema.row


def faults(challenger: Asked, *requests: list[Any], seconds: float = 20) -> list[str | None]:
    return [scores.fault for scores in challenger.score(requests, seconds)]


def test_it_scores_as_the_model_itself_does(
    start: Callable[..., Asked], row: Callable[..., Any], first_bundle: Bundle
) -> None:
    challenger, model = start(), Model(first_bundle, "")
    [one, two] = challenger.score([[row(GOOD)], [row(GOOD), row(BAD)]], 20)
    assert (one.scores, two.scores) == (model.score([row(GOOD)]), model.score([row(GOOD), row(BAD)]))
    assert one.seconds
    assert one.seconds > 0


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("raises", "error"),
        ("no number", "nan"),
        ("memory hog", "error"),
        ("wrong contract", "error"),
        ("inverted", None),
    ],
)
def test_a_fault_is_named_and_the_next_request_is_answered(
    start: Callable[..., Asked], row: Callable[..., Any], kind: str, fault: str | None
) -> None:
    challenger = start(kind)
    assert faults(challenger, [row(BAD)]) == [fault]
    assert faults(challenger, [row(GOOD)]) == [None]


def test_nobody_waits_for_one_that_is_too_slow_and_what_comes_late_confuses_nobody(
    start: Callable[..., Asked], row: Callable[..., Any], first_bundle: Bundle
) -> None:
    challenger = start("slow", budget_ms=20)
    assert faults(challenger, [row(BAD)], seconds=0.02) == ["slow"]
    assert len(challenger._connection.waiting) == 1  # it is still at it
    [after] = challenger.score([[row(GOOD)]], 20)
    assert after.scores == pytest.approx(Model(first_bundle, "").score([row(GOOD)]), abs=1e-6)


def test_one_that_dies_is_started_again_and_until_then_the_fault_says_so(
    start: Callable[..., Asked], row: Callable[..., Any]
) -> None:
    challenger = start()
    challenger._process.kill()
    assert faults(challenger, [row(GOOD)]) == ["died"]
    assert not challenger.down()  # it was started only now: not again and again
    challenger._started = 0.0
    assert challenger.down()
    challenger.revive()
    assert faults(challenger, [row(GOOD)]) == [None]


def together(challenger: Asked, *asked: tuple[list[Any], float]) -> list[str | None]:
    async def all_at_once() -> list[Any]:
        return await asyncio.gather(*(Challenger.score(challenger, [rows], seconds) for rows, seconds in asked))

    return [scores.fault for [scores] in asyncio.run_coroutine_threadsafe(all_at_once(), challenger._loop).result(60)]


def test_while_another_has_it_a_request_does_not_wait_for_long_and_that_is_not_its_fault(
    start: Callable[..., Asked], row: Callable[..., Any]
) -> None:
    challenger = start("slow", budget_ms=5000)
    assert together(challenger, ([row(BAD)], 10), ([row(GOOD)], 0.05)) == [None, "busy"]


def test_only_so_many_stand_in_line_and_the_others_are_told_at_once(
    start: Callable[..., Asked], row: Callable[..., Any]
) -> None:
    challenger = start()
    assert together(challenger, *[([row(GOOD)], 10.0)] * 10) == [None] * 8 + ["busy"] * 2


def test_one_that_hangs_is_slow_for_all_who_come_and_then_started_again(
    start: Callable[..., Asked], row: Callable[..., Any]
) -> None:
    challenger = start()
    challenger._process.send_signal(signal.SIGSTOP)
    assert [faults(challenger, [row(GOOD)], seconds=0.02) for _ in range(12)] == [["slow"]] * 12
    deadline = time.monotonic() + 10
    while not challenger.down():
        assert time.monotonic() < deadline
        challenger._started = 0.0
        time.sleep(0.05)
    challenger.revive()
    assert faults(challenger, [row(GOOD)]) == [None]


def test_repeated_failure_opens_the_breaker_until_it_goes_well_again(
    start: Callable[..., Asked], row: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    challenger = start("raises")
    assert faults(challenger, *[[row(GOOD)]] * 4, *[[row(BAD)]] * 5)[4:] == ["error"] * 5
    assert challenger.breaker.open
    monkeypatch.setattr("app.challenger._OPEN_SECONDS", -1.0)
    assert faults(challenger, *[[row(GOOD)]] * 15) == [None] * 15  # in shadow it goes on
    assert challenger.breaker.open  # five of the last twenty
    assert faults(challenger, [row(GOOD)] * 2, [row(GOOD)]) == [None] * 2
    assert not challenger.breaker.open


def test_closed_it_answers_nobody_and_leaves_nothing(start: Callable[..., Asked], row: Callable[..., Any]) -> None:
    challenger = start()
    process, folder = challenger._process, challenger._folder.name
    closing = threading.Thread(target=challenger.close)
    closing.start()
    closing.join(10)
    assert faults(challenger, [row(GOOD)]) == ["busy"]
    assert process.poll() is not None
    assert not Path(folder).exists()


def test_of_many_requests_that_come_together_some_are_timed_and_only_the_bad_one_fails(
    start: Callable[..., Asked], row: Callable[..., Any], first_bundle: Bundle
) -> None:
    challenger, model = start("raises"), Model(first_bundle, "")
    good = [[row(synthetic.request(size=i / 100))] * (i % 3 + 1) for i in range(12)]
    found = challenger.score(good, 20)
    assert [each.scores for each in found] == [pytest.approx(model.score(rows), abs=1e-6) for rows in good]
    assert 0 < sum(each.seconds is not None for each in found) < len(good)
    assert faults(challenger, *good[:8], [row(BAD)], *good[8:]) == [None] * 8 + ["error"] + [None] * 4
