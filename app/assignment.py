"""Which model answers for an entity: a salted hash, so that every replica decides alike without shared state."""

from hashlib import blake2b
from typing import Any

from mlops.releases import Release


def position(salt: str, key: str) -> float:
    """A number in [0, 1) for the key: uniform over keys, independent between salts."""
    return int.from_bytes(blake2b(f"{salt}|{key}".encode(), digest_size=8).digest()) / 2**64


def gets_challenger(release: Release, row: Any, key: str | None) -> bool:
    """`key`: the entity; without one the champion answers. A rising weight only moves keys to the challenger."""
    if release.weight is None or key is None:
        return False
    cohort = (release.cohort or {}).items()
    if any(_text(getattr(row, name, None)) != value for name, value in cohort):
        return False
    return position(release.rollout or release.challenger or "", key) < release.weight


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
