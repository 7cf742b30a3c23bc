import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mlops import releases
from mlops.errors import VerificationError
from mlops.releases import Release
from mlops.store import Store

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)


def record(revision: int, minutes: float, activate: float | None = None) -> Release:
    """At noon plus `minutes`, active from noon plus `activate`."""
    moment = NOON + timedelta(minutes=minutes)
    active = None if activate is None else NOON + timedelta(minutes=activate)
    return Release(
        revision=revision,
        at=moment,
        by="me",
        why="",
        mode="full",
        champion=f"{revision:064x}",
        activate_at=active,
        nonce="0",
    )


CASES: dict[str, tuple[list[Release], int | None]] = {
    "nothing is released": ([], None),
    "one release": ([record(1, -9)], 1),
    "at its very moment": ([record(1, 0)], 1),
    "a moment before": ([record(1, 0.001)], None),
    "the newest of three": ([record(1, -9), record(2, -6), record(3, -3)], 3),
    "a future one does not count yet": ([record(1, -9), record(2, 5)], 1),
    "only a future one": ([record(1, 5)], None),
    "one that waits for its activation": ([record(1, -9), record(2, -6, activate=1)], 1),
    "one that is active now": ([record(1, -9), record(2, -6, activate=0)], 2),
    "a later one overtakes one that waits": ([record(1, -9), record(2, -6, activate=1), record(3, -3)], 3),
    "and stays ahead when that is active": ([record(1, -9), record(2, -6, activate=-1), record(3, -3)], 3),
    "active before it was written": ([record(1, -9), record(2, 5, activate=-1)], 1),
    "the number decides, not the clock": ([record(1, -3), record(2, -9)], 2),
    "a number is missing": ([record(1, -9), record(4, -3)], 4),
}


@pytest.mark.parametrize(("log", "revision"), CASES.values(), ids=CASES)
def test_what_serves_at_noon(log: list[Release], revision: int | None) -> None:
    current = releases.serving(log, NOON)
    assert (current.revision if current else None) == revision


def test_of_any_moment_the_log_says_what_served() -> None:
    log = [record(1, 0), record(2, 10), record(3, 20, activate=40), record(4, 30)]
    expected = {-1: None, 0: 1, 9: 1, 10: 2, 25: 2, 30: 4, 50: 4}
    found = {minute: releases.serving(log, NOON + timedelta(minutes=minute)) for minute in expected}
    assert {minute: release and release.revision for minute, release in found.items()} == expected


def raw(**changes: Any) -> bytes:
    good = {
        "revision": 1,
        "at": "2024-05-01T12:00:00Z",
        "by": "me",
        "why": "",
        "mode": "full",
        "champion": "a" * 64,
        "nonce": "0",
    }
    return json.dumps({name: value for name, value in (good | changes).items() if value is not ...}).encode()


UNREADABLE = {
    "garbage": b"\xff\x00",
    "nothing": b"",
    "a list": b"[]",
    "nested deeply": b"[" * 100_000,
    "another number inside": raw(revision=2),
    "a mode that nobody knows": raw(mode="turbo"),
    "no nonce": raw(nonce=...),
    "a field more": raw(run="x"),
    "no digest": raw(champion="../../x"),
    "an approximate digest": raw(champion="A" * 64),
    "no time zone": raw(at="2024-05-01T12:00:00"),
    "no time zone of its activation": raw(activate_at="2024-05-01T12:00:00"),
    "a weight over one": raw(weight=1.5),
    "a weight that is no number": raw(weight=float("nan")),
    "revision 0": raw(revision=0),
}


@pytest.mark.parametrize("data", UNREADABLE.values(), ids=UNREADABLE)
def test_an_unreadable_record_is_refused_and_counts_as_never_written(tmp_path: Path, data: bytes) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(VerificationError) as refused:
        releases.parse(1, data)
    assert refused.value.reason == "record"
    releases.journal(store, "m").append(lambda _: data)
    assert releases.read(store, "m") == []
    assert releases.append(store, "m", "b" * 64, "next").revision == 2
    assert [release.revision for release in releases.read(store, "m")] == [2]


def test_a_good_record_is_read_as_written(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    written = [releases.append(store, "m", letter * 64, f"why {letter}", by="me") for letter in "ab"]
    assert releases.read(store, "m") == written
    assert [release.revision for release in written] == [1, 2]


def test_a_record_of_the_far_future_is_there_for_all_to_see_and_changes_nothing(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    releases.append(store, "m", "a" * 64, "now")
    releases.journal(store, "m").append(lambda revision: raw(revision=revision, at="9999-12-31T23:59:59-23:59"))
    log = releases.read(store, "m")
    assert len(log) == 2
    assert releases.serving(log, releases.now()) == log[0]


def test_a_record_bears_a_name_even_where_the_user_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise OSError("No username set in the environment")

    store = Store(str(tmp_path))
    monkeypatch.setattr("mlops.releases.getpass.getuser", nobody)
    assert releases.append(store, "m", "a" * 64, "x").by.startswith("user ")
    monkeypatch.setenv("MLOPS_BY", "ada")
    assert releases.append(store, "m", "a" * 64, "x").by == "ada"
