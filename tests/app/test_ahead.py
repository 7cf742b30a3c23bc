"""Releases that take over at an instant are loaded before it, and hold up nothing."""

from datetime import timedelta
from typing import Any

import psutil
import pytest

from app.challenger import Challenger
from mlops import promotion, releases
from mlops.bundle import Bundle
from mlops.environment import Environment
from tests import synthetic
from tests.service import Service


def challengers(service: Service) -> int:
    assert service.process
    children = psutil.Process(service.process.pid).children(recursive=True)
    return sum(Challenger.__module__ in _command(child) for child in children)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):  # it has just ended
        return []


@pytest.fixture
def digests(environment: Environment, first_bundle: Bundle, second_bundle: Bundle) -> list[str]:
    """Of two models, both released."""
    found = [synthetic.publish(environment, bundle) for bundle in (first_bundle, second_bundle)]
    for digest in found:
        promotion.release(environment.model(synthetic.MODEL), digest, "now")
    return found


def test_many_rollouts_dated_ahead_neither_delay_a_rollback_nor_stay(
    environment: Environment, digests: list[str]
) -> None:
    model, (first, second) = environment.model(synthetic.MODEL), digests
    with Service(environment, synthetic.MODEL) as service:
        service.serves(2)
        for minute in range(12):
            at = releases.now() + timedelta(minutes=2 + minute / 10)
            shadow: dict[str, Any] = {"challenger": first, "rollout": f"r{minute}", "activate_at": at}
            model.releases.append(second, "ahead", "shadow", **shadow)
        service.until(lambda: challengers(service) > 0)
        back = model.releases.append(first, "back")
        service.serves(back.revision)
        service.until(lambda: challengers(service) == 0)


def test_no_more_than_two_are_loaded_ahead_and_the_nearest_ones(environment: Environment, digests: list[str]) -> None:
    model, (first, second) = environment.model(synthetic.MODEL), digests
    instants = [releases.now() + timedelta(seconds=seconds) for seconds in (20, 60, 100, 140)]
    for at in instants:
        model.releases.append(second, "ahead", mode="shadow", challenger=first, rollout=at.isoformat(), activate_at=at)
    with Service(environment, synthetic.MODEL) as service:
        service.until(lambda: challengers(service) == 2)
        service.serves(3)
        assert challengers(service) <= 3, "that in force, and two ahead"
