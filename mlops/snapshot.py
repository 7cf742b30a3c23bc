"""The snapshot of a model's training data in the bucket, for trainings that cannot reach the source: Parquet, and after it the
SHA-256 of that."""

import hashlib

from mlops.errors import VerificationError
from mlops.store import Store

_PARQUET = b"PAR1"  # how it ends: one of before, without a checksum
_DIGITS = 64


def key(model: str) -> str:
    return f"data/{model}.parquet"


def put(store: Store, model: str, content: bytes) -> None:
    store.put(key(model), content + _sum(content))


def get(store: Store, model: str) -> bytes | None:
    """Its Parquet; None if there is none. Raises VerificationError if it is damaged."""
    raw = store.get(key(model))
    if raw is None or raw.endswith(_PARQUET):
        return raw
    content, told = raw[:-_DIGITS], raw[-_DIGITS:]
    if told != _sum(content):
        raise VerificationError("snapshot", key(model), f"{len(raw)} bytes", "are damaged; put it there again")
    return content


def _sum(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()
