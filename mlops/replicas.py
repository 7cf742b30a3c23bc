"""Where each replica of the service stands: one object a replica, written by itself and overwritten."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from mlops.store import Store

STALE_SECONDS = 30.0  # it writes at least every ten


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
    found = []
    for key in store.keys(f"replicas/{model}"):
        try:
            replica = msgspec.json.decode(store.get(key) or b"", type=Replica)
        except msgspec.DecodeError:
            continue
        if replica.ready and abs(time.time() - replica.at) < STALE_SECONDS:
            found.append(replica)
    return found
