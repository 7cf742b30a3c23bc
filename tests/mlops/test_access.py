from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mlops import access
from mlops.errors import UserError, VerificationError
from mlops.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def everything(store: Store) -> bytes:
    return b"".join(store.get(key) or b"" for key in store.keys("access"))


def test_only_the_hash_of_a_key_is_kept(store: Store) -> None:
    key, secret = access.new(store, "client", ["predict"], per_second=5)
    assert access.read(store) == [key]
    assert key.sha256 == access.sha256(secret)
    assert secret.startswith(f"mlops_{key.id}_")
    assert secret.encode() not in everything(store)
    assert secret.removeprefix(f"mlops_{key.id}_").encode() not in everything(store)


def test_keys_accumulate_and_revoking_one_leaves_the_others(store: Store) -> None:
    first, _ = access.new(store, "first", ["predict"], per_second=5)
    second, _ = access.new(store, "second", ["outcomes"], per_second=5, expires=datetime.now(UTC) + timedelta(days=1))
    access.revoke(store, first.id)
    assert access.read(store) == [first.model_copy(update={"revoked": True}), second]


def test_no_two_keys_are_alike(store: Store) -> None:
    made = [access.new(store, "same", ["predict"], per_second=5) for _ in range(5)]
    assert len({secret for _, secret in made}) == len({key.id for key, _ in made}) == 5


def test_a_kept_key_is_made_once_and_gains_the_scopes_that_it_lacks(store: Store) -> None:
    secret = access.new_secret()
    access.ensure(store, "client", ["predict"], 5, secret)
    other, _ = access.new(store, "other", ["predict"], per_second=5)
    access.ensure(store, "client", ["predict"], 5, secret)
    assert access.access_log(store).last() == 2
    access.ensure(store, "client", ["outcomes", "status"], 9, secret)
    key, *others = access.read(store)
    assert (key.sha256, key.scopes, key.per_second) == (access.sha256(secret), ["predict", "outcomes", "status"], 5)
    assert others == [other]
    access.revoke(store, key.id)
    access.ensure(store, "client", ["analysis"], 5, secret)
    assert access.read(store)[0].revoked


def test_an_unknown_key_cannot_be_revoked_and_a_key_needs_a_scope(store: Store) -> None:
    with pytest.raises(UserError, match="see `mlops api-key list`"):
        access.revoke(store, "nobody")
    with pytest.raises(UserError, match=r"scopes: .* at least 1"):
        access.new(store, "x", [], per_second=5)
    with pytest.raises(UserError, match=r"scopes.0 is 'admin'.*'predict'"):
        access.new(store, "x", ["admin"], per_second=5)
    assert access.read(store) == []


@pytest.mark.parametrize("garbage", [
    b"", b"\xff", b"[" * 100_000, b'{"keys": []}', b'{"nonce": "", "keys": [{"id": "x"}]}', b" " * (2 * 2**20 + 1),
    *(b'{"nonce": "", "keys": [{"id": "x", "name": "", "scopes": [%s], "sha256": "%s", "per_second": %s, "created": "%s"}]}' % changed
      for changed in (
          (b'"predict"', b"ab", b"1", b"2024-01-01T00:00:00Z"), (b'"predict"', b"a" * 64, b"0", b"2024-01-01T00:00:00Z"),
          (b'"predict"', b"a" * 64, b"1", b"2024-01-01"), (b"", b"a" * 64, b"1", b"2024-01-01T00:00:00Z"),
          (b'"admin"', b"a" * 64, b"1", b"2024-01-01T00:00:00Z"))),
])  # fmt: skip
def test_a_record_that_cannot_be_read_counts_as_never_written(store: Store, garbage: bytes) -> None:
    key, _ = access.new(store, "client", ["predict"], per_second=5)
    access.access_log(store).append(lambda _: garbage)
    with pytest.raises(VerificationError) as refused:
        access.parse(2, garbage)
    assert refused.value.reason == "access"
    assert access.read(store) == [key]
    after, _ = access.new(store, "after", ["predict"], per_second=5)
    assert access.read(store) == [key, after]
