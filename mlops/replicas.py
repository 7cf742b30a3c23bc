"""Where each replica of the service stands: one object a replica, written by itself and overwritten."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import msgspec

from mlops.store import Store

_STALE_SECONDS = 30.0  # it writes at least every ten
_GONE_SECONDS = 3600.0


class Replica(msgspec.Struct):
    """`at` in Unix seconds; `serving` is an epoch, `loaded` are the digests that it could answer with at once."""

    name: str
    at: float
    serving: int
    ready: bool
    loaded: list[str]


def tell(store: Store, model: str, name: str, **state: Any) -> None:
    store.put(f"replicas/{model}/{name}.json", msgspec.json.encode(Replica(name=name, at=time.time(), **state)))


def alive(store: Store, model: str) -> list[Replica]:
    """The ready ones that were heard of lately."""
    return [each for each in _read(store, model).values() if each.ready and abs(time.time() - each.at) < _STALE_SECONDS]


def forget(store: Store, model: str) -> None:
    """Those that have long been gone: pods come and go under ever new names."""
    for key, replica in _read(store, model).items():
        if time.time() - replica.at > _GONE_SECONDS:
            store.delete(key)


def _read(store: Store, model: str) -> dict[str, Replica]:
    found = {}
    for key in store.keys(f"replicas/{model}"):
        with suppress(msgspec.DecodeError):
            found[key] = msgspec.json.decode(store.get(key) or b"", type=Replica)
    return found
