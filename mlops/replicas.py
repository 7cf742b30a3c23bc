"""The state of each replica of the service: one object a replica, overwritten by itself."""

import time
from contextlib import suppress
from typing import Any

import msgspec

from mlops.errors import VerificationError
from mlops.registered_model import RegisteredModel

_MAX_BYTES = 64 * 1024
_STALE_SECONDS = 30.0  # it writes at least every ten
_GONE_SECONDS = 3600.0


class Replica(msgspec.Struct):
    """`at` in Unix seconds; `serving` is a revision, `loaded` are the digests that it can answer with at once."""

    name: str
    at: float
    serving: int
    ready: bool
    loaded: list[str]


def report(model: RegisteredModel, name: str, **state: Any) -> None:
    content = msgspec.json.encode(Replica(name=name, at=time.time(), **state))
    model.store.put(f"replicas/{model.name}/{name}.json", content)


def alive(model: RegisteredModel) -> list[Replica]:
    """The ready ones that reported lately."""
    return [each for each in _read(model).values() if each.ready and abs(time.time() - each.at) < _STALE_SECONDS]


def wait_for(model: RegisteredModel, revision: int, seconds: float) -> list[str]:
    """Until every ready replica serves that revision; returns those that do not by then."""
    deadline = time.monotonic() + seconds
    while late := [each.name for each in alive(model) if each.serving < revision]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    return late


def remove_gone(model: RegisteredModel) -> None:
    """Pods come and go under ever new names."""
    for key, replica in _read(model).items():
        if time.time() - replica.at > _GONE_SECONDS:
            model.store.delete(key)


def _read(model: RegisteredModel) -> dict[str, Replica]:
    found = {}
    for key in model.store.keys(f"replicas/{model.name}"):
        with suppress(ValueError, VerificationError):
            found[key] = msgspec.json.decode(model.store.get(key, _MAX_BYTES) or b"", type=Replica)
    return found
