from __future__ import annotations

import time
import uuid
from itertools import pairwise

import pytest

from mlops.log_key import LogKey
from tests.ids import LOG_KEY, id_at, new_id
from tests.service import LOG_SECRET
from tests.synthetic import MODEL


def test_ids_are_distinct_uuids_of_version_7_and_sort_by_time() -> None:
    made = []
    for _ in range(5):
        made.append([new_id() for _ in range(200)])
        time.sleep(0.002)
    flat = [each for batch in made for each in batch]
    assert len(set(flat)) == 1000
    for text in flat:
        parsed = uuid.UUID(text)
        assert (str(parsed), parsed.version, parsed.variant) == (text, 7, uuid.RFC_4122)
    assert all(max(earlier) < min(later) for earlier, later in pairwise(made))


def test_two_processes_with_the_same_secret_issue_different_ids_and_know_each_others() -> None:
    one, other = LogKey(LOG_SECRET, MODEL), LogKey(LOG_SECRET, MODEL)
    made = [key.new_id() for _ in range(5000) for key in (one, other)]
    assert len(set(made)) == 10_000
    assert all(one.id_time(each) and other.id_time(each) for each in made)


def test_an_id_says_when_it_was_issued() -> None:
    for at in (0.0, 1e9, time.time(), 7.2e9):
        assert LOG_KEY.id_time(id_at(at)) == int(at * 1000) / 1000


@pytest.mark.parametrize("position", [i for i in range(36) if i not in (8, 13, 18, 23)])
def test_no_digit_of_an_id_can_be_changed(position: int) -> None:
    issued = new_id()
    for digit in "0123456789abcdef":
        changed = issued[:position] + digit + issued[position + 1 :]
        assert (LOG_KEY.id_time(changed) is None) == (changed != issued)


@pytest.mark.parametrize("key", [LogKey("another secret of thirty-two characters", MODEL), LogKey(LOG_SECRET, "other")])
def test_another_environments_or_models_ids_are_none(key: LogKey) -> None:
    assert LOG_KEY.id_time(key.new_id()) is None
    assert key.hashed("color", "red") != LOG_KEY.hashed("color", "red")


ODD = ["", "x", "x" * 36, "-" * 36, str(uuid.uuid4()), "9" * 10_000, "\ud800", "\x00", "٣" * 36]
SHAPES = [str.upper, lambda each: each.replace("-", ""), lambda each: f" {each}", lambda each: f"{each}\n",
          lambda each: f"0x{each[2:]}", lambda each: each.replace("-", "_"), lambda each: f"+{each[1:]}"]  # fmt: skip


NEVER_ISSUED = [*ODD, *(shape(new_id()) for shape in SHAPES)]


@pytest.mark.parametrize("text", NEVER_ISSUED, ids=range(len(NEVER_ISSUED)))
def test_what_was_never_issued_is_no_id(text: str) -> None:
    assert LOG_KEY.id_time(text) is None


def test_a_hashed_value_is_one_of_its_feature_and_cannot_be_found_without_the_secret() -> None:
    assert LOG_KEY.hashed("color", "red") == LogKey(LOG_SECRET, MODEL).hashed("color", "red")
    assert len({LOG_KEY.hashed(feature, value) for feature in ("a", "b") for value in ("x", "y", 1.0, True)}) == 8
