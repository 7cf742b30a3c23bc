import contextlib
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mlops.envelope import Attestation, seal
from mlops.errors import ConflictError
from mlops.keys import Keyring
from mlops.releases import Release, ReleaseLog, now, serving
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
    "one that is not yet active": ([record(1, -9), record(2, -6, activate=1)], 1),
    "one that is active now": ([record(1, -9), record(2, -6, activate=0)], 2),
    "a later one overtakes one that is not yet active": ([record(1, -9), record(2, -6, activate=1), record(3, -3)], 3),
    "and stays ahead when that becomes active": ([record(1, -9), record(2, -6, activate=-1), record(3, -3)], 3),
    "active before it was written": ([record(1, -9), record(2, 5, activate=-1)], 1),
    "the revision decides, not the clock": ([record(1, -3), record(2, -9)], 2),
    "a revision is missing": ([record(1, -9), record(4, -3)], 4),
}


@pytest.mark.parametrize(("log", "revision"), CASES.values(), ids=CASES)
def test_what_serves_at_noon(log: list[Release], revision: int | None) -> None:
    current = serving(log, NOON)
    assert (current.revision if current else None) == revision


def test_the_log_says_what_served_at_any_moment() -> None:
    log = [record(1, 0), record(2, 10), record(3, 20, activate=40), record(4, 30)]
    expected = {-1: None, 0: 1, 9: 1, 10: 2, 25: 2, 30: 4, 50: 4}
    found = {minute: serving(log, NOON + timedelta(minutes=minute)) for minute in expected}
    assert {minute: release and release.revision for minute, release in found.items()} == expected


def release_log(home: Path, store: Store | None = None) -> ReleaseLog:
    keyring = Keyring(home / "keys" / "keyring.json")
    if not keyring.all():
        keyring.new("approve", "local")
    return ReleaseLog(store or Store(str(home)), "m", keyring, "local")


def sealed(releases: ReleaseLog, home: Path, data: bytes, **about: Any) -> bytes:
    """A record as a key that approves signs it."""
    fields = {"kind": "released", "model": "m", "digest": "a" * 64, "environment": "local", "at": NOON} | about
    claim = Attestation.model_validate(fields | {"details": json.loads(data)})
    return seal(claim.payload(), Keyring(home / "keys" / "keyring.json"), "approve", "local").envelope


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
    "another revision inside": raw(revision=2),
    "an unknown mode": raw(mode="turbo"),
    "no nonce": raw(nonce=...),
    "an unknown field": raw(run="x"),
    "not a digest": raw(champion="../../x"),
    "a digest in capitals": raw(champion="A" * 64),
    "no time zone": raw(at="2024-05-01T12:00:00"),
    "no time zone of its activation": raw(activate_at="2024-05-01T12:00:00"),
    "a weight over one": raw(weight=1.5),
    "a weight that is no number": raw(weight=float("nan")),
    "revision 0": raw(revision=0),
}


@pytest.mark.parametrize("data", UNREADABLE.values(), ids=UNREADABLE)
def test_an_unreadable_record_is_refused_and_counts_as_never_written(tmp_path: Path, data: bytes) -> None:
    releases, refused = release_log(tmp_path), []
    releases.refuse = lambda error, revision: refused.append((error.reason, revision))
    with contextlib.suppress(ValueError, RecursionError):  # it is an object: signed as well, it is no better
        data = sealed(releases, tmp_path, data) if isinstance(json.loads(data), dict) and b"NaN" not in data else data
    releases.log.store.put(releases.log.key(1), data)
    assert releases.read() == []
    assert refused == [("record", 1)]
    assert releases.append("b" * 64, "next").revision == 2
    assert [release.revision for release in releases.read()] == [2]


CHALLENGED: dict[str, Any] = {"mode": "shadow", "challenger": "b" * 64, "rollout": "r"}
UNSIGNED: dict[str, tuple[dict[str, Any], bool]] = {
    "that ends the rollout": ({"mode": "full", "champion": "a" * 64}, True),
    "that makes the challenger the champion": ({"mode": "full", "champion": "b" * 64}, False),
    "that makes another the champion": ({"mode": "full", "champion": "c" * 64}, False),
    "that raises the weight": ({**CHALLENGED, "mode": "canary", "weight": 1.0}, False),
    "that ends it with another challenger": ({**CHALLENGED, "challenger": "c" * 64}, False),
}


@pytest.mark.parametrize("how", UNSIGNED)
def test_an_unsigned_record_can_only_end_a_rollout(tmp_path: Path, how: str) -> None:
    changes, counts = UNSIGNED[how]
    releases = release_log(tmp_path)
    releases.append("a" * 64, "beside it", **CHALLENGED)
    releases.log.append(lambda revision: raw(revision=revision, **changes))
    assert [each.revision for each in releases.read()] == ([1, 2] if counts else [1])


def test_an_unsigned_record_begins_nothing_where_nothing_is_released(tmp_path: Path) -> None:
    releases = release_log(tmp_path)
    releases.log.append(lambda revision: raw(revision=revision))
    assert releases.read() == []


FOREIGN: dict[str, Callable[[ReleaseLog, Path], bytes]] = {
    "another model's": lambda log, home: sealed(log, home, raw(), model="other"),
    "another environment's": lambda log, home: sealed(log, home, raw(), environment="prod"),
    "a verdict": lambda log, home: sealed(log, home, raw(), kind="judged"),
    "an approval": lambda log, home: sealed(log, home, raw(), kind="approved"),
    "one that is no record": lambda log, home: sealed(log, home, b"{}"),
    "another revision's": lambda log, home: sealed(log, home, raw(revision=2)),
    "one with a changed payload": lambda log, home: sealed(log, home, raw()).replace(b'payload": "e', b'payload": "f'),
}


@pytest.mark.parametrize("how", FOREIGN)
def test_what_was_signed_as_something_else_is_no_record(tmp_path: Path, how: str) -> None:
    releases = release_log(tmp_path)
    releases.log.store.put(releases.log.key(1), FOREIGN[how](releases, tmp_path))
    assert releases.read() == []


def test_a_record_with_its_signature_beside_it_counts(tmp_path: Path) -> None:
    releases, data = release_log(tmp_path), raw()
    releases.log.store.put(releases.log.key(1), data)
    assert releases.read() == []
    releases.log.store.put("models/m/signed/00000001/released-0.json", sealed(releases, tmp_path, data))
    assert [each.champion for each in release_log(tmp_path).read()] == ["a" * 64]


def test_with_a_repaired_keyring_refused_records_count_and_with_a_revoked_key_none_does(tmp_path: Path) -> None:
    releases, keyring = release_log(tmp_path), Keyring(tmp_path / "keys" / "keyring.json")
    written, whole = releases.append("a" * 64, "first"), keyring.path.read_bytes()
    keyring.path.write_text('{"keys": []}')
    assert releases.read() == []
    keyring.path.write_bytes(whole)
    assert releases.read() == [written]
    keyring.set_state(keyring.all()[0].id, "revoked")
    assert releases.read() == []


@pytest.mark.parametrize("position", range(0, 900, 7))
def test_no_flipped_bit_makes_another_record_of_one(tmp_path: Path, position: int) -> None:
    releases = release_log(tmp_path)
    written, key = releases.append("a" * 64, "first"), releases.log.key(1)
    data = bytearray(releases.log.store.get(key) or b"")
    data[position % len(data)] ^= 1 << position % 8
    releases.log.store.put(key, bytes(data))
    assert release_log(tmp_path).read() in ([], [written])


def test_a_good_record_is_read_as_written(tmp_path: Path) -> None:
    releases = release_log(tmp_path)
    written = [releases.append(letter * 64, f"why {letter}", by="me") for letter in "ab"]
    assert releases.read() == release_log(tmp_path).read() == written
    assert [release.revision for release in written] == [1, 2]
    assert releases.current() == written[-1]


def test_a_record_of_the_far_future_is_listed_and_changes_nothing(tmp_path: Path) -> None:
    releases = release_log(tmp_path)
    releases.append("a" * 64, "now")
    far = {"at": "9999-12-31T23:59:59-23:59"}
    releases.log.append(lambda revision: sealed(releases, tmp_path, raw(revision=revision, **far)))
    log = releases.read()
    assert len(log) == 2
    assert serving(log, now()) == releases.current() == log[0]


def test_a_record_names_its_author_even_if_the_user_has_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody() -> str:
        raise OSError("No username set in the environment")

    releases = release_log(tmp_path)
    monkeypatch.setattr("mlops.releases.getpass.getuser", nobody)
    assert releases.append("a" * 64, "x").by.startswith("user ")
    monkeypatch.setenv("MLOPS_BY", "ada")
    assert releases.append("a" * 64, "x").by == "ada"


def test_a_release_after_another_than_the_last_is_a_conflict(tmp_path: Path) -> None:
    releases = release_log(tmp_path)
    releases.append("a" * 64, "first")
    releases.append("b" * 64, "second", after=1)
    with pytest.raises(ConflictError, match="meanwhile"):
        releases.append("c" * 64, "late", after=1)
    assert [release.why for release in releases.read()] == ["first", "second"]


class _Counting(Store):
    """Notes the keys that are fetched."""

    def __init__(self, url: str):
        super().__init__(url)
        self.fetched: list[str] = []

    def get(self, key: str, limit: int | None = None) -> bytes | None:
        self.fetched.append(key)
        return super().get(key, limit)


def test_each_read_fetches_only_what_is_new(tmp_path: Path) -> None:
    store = _Counting(str(tmp_path))
    releases, elsewhere = release_log(tmp_path, store), release_log(tmp_path)
    first = elsewhere.append("a" * 64, "first")
    elsewhere.log.append(lambda _: b"{unreadable}")
    assert releases.read() == [first]
    store.fetched.clear()
    third = elsewhere.append("b" * 64, "third")
    assert releases.read() == releases.read() == [first, third]
    assert store.fetched == [releases.log.key(revision) for revision in (3, 4, 4)]
