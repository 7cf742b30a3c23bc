from __future__ import annotations

from collections.abc import Callable, Iterator

from mlops.errors import Fault, Refused
from mlops.store import Store

_MAX_BYTES = 2 * 1024 * 1024
_TRIES = 50


class Overtaken(Fault):
    """Another record took the epoch."""


class Journal:
    """An append-only log in the bucket: one object an epoch, numbered from 1 without gaps."""

    def __init__(self, store: Store, prefix: str):
        self.store, self.prefix = store, prefix

    def key(self, epoch: int) -> str:
        return f"{self.prefix}/{epoch:08d}.json"

    def get(self, epoch: int) -> bytes | None:
        """None if it is not written; empty, which no reader takes for a record, if it is larger than any we write."""
        try:
            return self.store.get(self.key(epoch), _MAX_BYTES)
        except Refused:
            return b""

    def last(self) -> int:
        """The newest epoch: the end of the run without gaps, so that a number out of line changes nothing."""
        return self.listed()[0]

    def listed(self) -> tuple[int, list[str]]:
        """The newest epoch, and the keys that are out of line."""
        present = set(self.store.keys(self.prefix))
        epoch = 0
        while self.key(epoch + 1) in present:
            epoch += 1
            present.remove(self.key(epoch))
        return epoch, sorted(present)

    def read(self) -> Iterator[tuple[int, bytes]]:
        for epoch in range(1, self.last() + 1):
            raw = self.get(epoch)
            if raw is not None:
                yield epoch, raw

    def append(self, make: Callable[[int], bytes], after: int | None = None) -> int:
        """Write `make(epoch)` under the next free epoch; the bytes carry a nonce, so that a lost reply is found again.
        With `after`: only if that epoch is still the last, since what is written was concluded from it."""
        epoch = (self.last() if after is None else after) + 1
        for _ in range(_TRIES if after is None else 1):
            data = make(epoch)
            try:
                written = self.store.put_new(self.key(epoch), data)
            except Exception:
                if self.get(epoch) != data:
                    raise
                written = True
            if written or self.get(epoch) == data:
                return epoch
            epoch += 1
        raise Overtaken(self.prefix, epoch, "somebody else wrote it meanwhile; look at the log and try again")
