from collections.abc import Iterator

import pytest

from mlops.bundle import Bundle
from tests.proofs.hostile import ATTACKS, Attack, Siege, flood

QUICK = [each for each in ATTACKS if not each.slow]


@pytest.fixture(scope="module")
def siege(tmp_path_factory: pytest.TempPathFactory, first_bundle: Bundle, second_bundle: Bundle) -> Iterator[Siege]:
    with Siege(tmp_path_factory.mktemp("siege"), first_bundle, second_bundle) as siege:
        yield siege


@pytest.mark.parametrize("attack", QUICK, ids=lambda attack: attack.name)
def test_it_is_refused_and_counted_while_the_last_good_model_answers_and_the_next_one_comes_through(
    siege: Siege, attack: Attack
) -> None:
    siege.strike(attack)
    siege.come_through(siege.good[0])


def test_after_a_restart_the_last_good_model_answers(siege: Siege) -> None:
    struck = [
        each
        for each in QUICK
        if each.reason in ("record", "revision", "access", "mode", "future", "attestation", "manifest")
    ]
    for each in struck:
        each.strike(siege.bucket)
    siege.restart(*{each.reason for each in struck})
    siege.come_through(siege.good[1])


def test_a_hundred_hostile_records_neither_hold_up_a_good_one_nor_fill_memory(siege: Siege) -> None:
    siege.service.until(lambda: siege.rss > 0)
    before = siege.rss
    flood(siege, 100)  # ends once the good one serves
    siege.holds()
    assert siege.rss < before + 50
