import contextlib
import io
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from mlops.append_log import AppendLog
from mlops.errors import ConflictError, UserError, VerificationError
from mlops.store import Store


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(str(tmp_path / "bucket") if request.param == "folder" else request.getfixturevalue("s3_bucket"))


def test_an_object_is_found_after_it_was_put(store: Store, tmp_path: Path) -> None:
    store.put("a/b/one", b"1")
    (tmp_path / "file").write_bytes(b"2")
    store.put("a/b/two", tmp_path / "file")
    store.put("a/c", b"3")
    assert (store.get("a/b/one"), store.get("a/b/two"), store.get("a/none"), store.get("a")) == (b"1", b"2", None, None)
    assert store.keys("a/b") == ["a/b/one", "a/b/two"]
    assert store.keys("nowhere") == []


def test_put_new_never_overwrites(store: Store) -> None:
    assert store.put_new("k", b"first")
    assert not store.put_new("k", b"second")
    assert store.get("k") == b"first"


def test_of_many_that_put_the_same_key_one_wins(store: Store) -> None:
    start = threading.Barrier(8)

    def put(number: int) -> bool:
        start.wait()
        return store.put_new("k", b"%d" % number)

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(put, range(8)))
    assert sum(won) == 1
    assert store.get("k") == b"%d" % won.index(True)


def test_more_bytes_than_allowed_are_not_read(store: Store) -> None:
    store.put("k", b"12345")
    assert store.get("k", 5) == b"12345"
    with pytest.raises(VerificationError, match="4 are allowed"):
        store.get("k", 4)


def test_a_packed_store_is_unpacked_as_it_was(store: Store, tmp_path: Path) -> None:
    objects = {"a/b/one": b"1" * 100_000, "a/empty": b"", "two": b"2"}
    for key, data in objects.items():
        store.put(key, data)
    archive, other = io.BytesIO(), Store(str(tmp_path / "other"))
    store.pack(archive)
    archive.seek(0)
    other.put("two", b"replaced by the archive's")
    other.unpack(archive)
    assert {key: other.get(key) for key in other.keys("")} == objects


def test_what_is_unpacked_replaces_no_release(store: Store) -> None:
    key, archive = "models/m/releases/0000000001.json", io.BytesIO()
    store.put(key, b"of the archive")
    store.pack(archive)
    archive.seek(0)
    store.put(key, b"of today")
    store.unpack(archive)
    assert store.get(key) == b"of today"


def test_an_unsupported_address_is_refused() -> None:
    with pytest.raises(UserError, match="write a folder"):
        Store("ftp://somewhere")


def test_concurrent_appends_get_revisions_of_their_own_without_gaps(store: Store) -> None:
    start = threading.Barrier(8)

    def append(number: int) -> list[tuple[int, bytes]]:
        start.wait()
        written = [b'{"by":"%d-%d"}' % (number, turn) for turn in range(5)]
        return [(AppendLog(store, "log").append(lambda _, data=data: data), data) for data in written]

    with ThreadPoolExecutor(8) as pool:
        claimed = dict(pair for pairs in pool.map(append, range(8)) for pair in pairs)
    assert sorted(claimed) == list(range(1, 41))
    assert dict(AppendLog(store, "log").tail()) == claimed


class _Unreliable(Store):
    """Every write arrives; the replies to the first ones do not."""

    lost = 1

    def put_new(self, key: str, data: bytes) -> bool:
        written = super().put_new(key, data)
        if self.lost:
            self.lost -= 1
            raise TimeoutError
        return written


def test_a_lost_reply_is_recognised_by_what_was_written(tmp_path: Path) -> None:
    log = AppendLog(_Unreliable(str(tmp_path)), "log")
    assert log.append(lambda revision: b'{"mine":%d}' % revision) == 1
    assert dict(log.tail()) == {1: b'{"mine":1}'}


def test_a_lost_reply_to_a_write_that_another_won_is_an_error(tmp_path: Path) -> None:
    log = AppendLog(_Unreliable(str(tmp_path)), "log")

    def outrun(revision: int) -> bytes:
        Store(str(tmp_path)).put_new(log.key(revision), b"theirs")
        return b"mine"

    with pytest.raises(TimeoutError):
        log.append(outrun)
    assert log.get(1) == b"theirs"


def test_a_stray_number_changes_nothing(store: Store) -> None:
    log = AppendLog(store, "log")
    assert (log.last(), log.append(lambda _: b"1")) == (0, 1)
    for name in (log.key(3), log.key(9000), "log/00000002.txt", "log/2.json", "log-2/00000002.json"):
        store.put(name, b"forged")
    assert log.last() == 1
    assert log.key(9000) in log.listed()[1]
    assert log.append(lambda _: b"2") == 2
    assert log.last() == 3  # the stray is part of the run now, and its reader judges it as any other
    assert log.append(lambda _: b"4") == 4


@pytest.mark.parametrize("position", range(0, 100, 3))
def test_a_flipped_bit_makes_no_other_record(tmp_path: Path, position: int) -> None:
    log, record = AppendLog(Store(str(tmp_path)), "log"), b'{"expires":"2026-01-01"}'
    log.append(lambda _: record)
    data = bytearray(log.store.get(log.key(1)) or b"")
    data[position] ^= 4
    log.store.put(log.key(1), bytes(data))
    with contextlib.suppress(msgspec.DecodeError):
        assert msgspec.json.decode(log.get(1) or b"")["expires"] == "2026-01-01"


def test_a_record_from_before_there_were_checksums_is_read(tmp_path: Path) -> None:
    log = AppendLog(Store(str(tmp_path)), "log")
    log.store.put(log.key(1), b'{"n":1}')
    assert dict(log.tail()) == {1: b'{"n":1}'}


def test_a_record_larger_than_any_we_write_reads_as_empty(tmp_path: Path) -> None:
    log = AppendLog(Store(str(tmp_path)), "log")
    log.append(lambda _: b" " * (2 * 2**20 + 1))
    assert log.get(1) == b""
    assert log.append(lambda _: b"next") == 2


def test_a_writer_that_always_loses_gives_up_with_a_conflict(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    log = AppendLog(store, "log")

    def outrun(revision: int) -> bytes:
        store.put_new(log.key(revision), b"theirs")
        return b"mine"

    with pytest.raises(ConflictError, match="meanwhile"):
        log.append(outrun)


def test_a_log_is_read_from_any_revision_on(store: Store) -> None:
    log = AppendLog(store, "log")
    for text in (b'{"n":1}', b'{"n":2}', b'{"n":3}'):
        log.append(lambda _, text=text: text)
    assert list(log.tail(1)) == [(2, b'{"n":2}'), (3, b'{"n":3}')]
    assert list(log.tail(3)) == []


def test_an_append_after_another_revision_than_the_last_is_a_conflict(store: Store) -> None:
    log = AppendLog(store, "log")
    assert [log.append(lambda _: b'{"n":1}', after=0), log.append(lambda _: b'{"n":2}', after=1)] == [1, 2]
    with pytest.raises(ConflictError, match="meanwhile"):
        log.append(lambda _: b"late", after=1)
    assert dict(log.tail()) == {1: b'{"n":1}', 2: b'{"n":2}'}
