"""Who gets which model: a salted hash, so that every replica says the same and nobody keeps a list."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

from mlops.releases import Release


def position(salt: str, key: str) -> float:
    """Where a key lies in [0, 1): evenly over keys, and anew for each salt."""
    return int.from_bytes(blake2b(f"{salt}|{key}".encode(), digest_size=8).digest()) / 2**64


def gets_challenger(release: Release, row: Any, key: str | None) -> bool:
    """`key`: whom the row is about; without one the champion answers. A weight that rises moves keys one way only."""
    if release.weight is None or key is None:
        return False
    if release.segment and any(_text(getattr(row, name, None)) != value for name, value in release.segment.items()):
        return False
    return position(release.experiment or release.challenger or "", key) < release.weight


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
