import hashlib
from collections.abc import Callable, Iterator

from mlops.errors import ConflictError, VerificationError
from mlops.store import Store

MAX_BYTES = 2 * 1024 * 1024
_TRIES = 50


class AppendLog:
    """An append-only log in the bucket: one object a revision, numbered from 1 without gaps, a JSON object with its own
    checksum, so that no damage makes another record of it."""

    def __init__(self, store: Store, prefix: str):
        self.store, self.prefix = store, prefix

    def key(self, revision: int) -> str:
        return f"{self.prefix}/{revision:08d}.json"

    def get(self, revision: int) -> bytes | None:
        """None if it is not written; empty, which no reader accepts, if it is damaged, unreadable or larger than any record
        of ours."""
        try:
            raw = self.store.get(self.key(revision), MAX_BYTES)
        except VerificationError:
            return b""
        return None if raw is None else _checked(raw)

    def tail(self, after: int = 0) -> Iterator[tuple[int, bytes]]:
        """The records beyond revision `after`, up to the first that is not written."""
        while (raw := self.get(after + 1)) is not None:
            after += 1
            yield after, raw

    def last(self) -> int:
        """The newest revision: the end of the run without gaps, so that a stray number changes nothing."""
        return self.listed()[0]

    def listed(self) -> tuple[int, list[str]]:
        """The newest revision, and the keys of strays beside the run."""
        present = set(self.store.keys(self.prefix))
        revision = 0
        while self.key(revision + 1) in present:
            revision += 1
            present.remove(self.key(revision))
        return revision, sorted(present)

    def append(self, make: Callable[[int], bytes], after: int | None = None) -> int:
        """Write `make(revision)` under the next free revision and return that; the bytes carry a nonce, so that a lost
        reply is recognised. With `after`: raises ConflictError unless that revision is still the last."""
        revision = (self.last() if after is None else after) + 1
        for _ in range(_TRIES if after is None else 1):
            data = make(revision)
            try:
                written = self.store.put_new(self.key(revision), data[:-1] + _sum(data))
            except Exception:
                if self.get(revision) != data:
                    raise
                written = True
            if written or self.get(revision) == data:
                return revision
            revision += 1
        raise ConflictError(self.prefix, revision, "was written by another process meanwhile; try again")


def _sum(data: bytes) -> bytes:
    """The last member of the object, in place of its closing brace."""
    return b',"sha256":"%s"}' % hashlib.sha256(data).hexdigest().encode()


def _checked(raw: bytes) -> bytes:
    """The record without its checksum; empty if that is wrong. Records of before have none."""
    data = raw[: -len(_sum(b""))] + b"}"
    return data if raw == data[:-1] + _sum(data) else b"" if b',"sha256":"' in raw[len(data) - 1 :] else raw
