"""The files of the prediction log: segments as the app wrote them, and the Parquet that they become. A file that has anything
but records of ours is damaged."""

import hashlib
import re

from mlops import log_schema
from mlops.errors import VerificationError
from mlops.store import Store
from monitoring.decoder import Decoded, decode, nothing
from monitoring.frames import Schema

_MAX_BYTES = 256 * 2**20
LATE = "late"  # in place of an hour: outcomes of predictions of a day that was well over
_HOUR = rf"[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}/([0-9]{{2}}|{LATE})"
_NAMED = re.compile(rf"(damaged/)?(predictions|outcomes)/[^/]+/{_HOUR}/[0-9]{{8}}-[^/]+\.(log|parquet)")
damaged: set[str] = set()  # keys that this process came upon: compaction sets them aside


def listed(store: Store, prefix: str, after: str | None = None) -> list[str]:
    """Keys of files of the log; what is named otherwise is none."""
    return [key for key in store.keys(prefix, after) if _NAMED.fullmatch(key)]


def read(store: Store, key: str, schema: Schema | None = None) -> Decoded | None:
    """The rows of one file, with these columns or all; None if it is gone."""
    kind = key.partition("/")[0]
    try:
        content = store.get(key, _MAX_BYTES)
    except VerificationError:  # the bucket does not hand it out: it cannot be set aside
        return nothing(kind, schema)
    if content is None:
        return None
    whole = log_schema.intact(key, content)
    found = decode(content, kind, key.endswith(".parquet"), schema) if whole else nothing(kind, schema)
    (damaged.add if found.lost else damaged.discard)(key)
    return found


def put(store: Store, start: str, content: bytes, suffix: str) -> str:
    """`start`: the key up to the revision. Returns the key that the content gets."""
    key = f"{start}-{hashlib.sha256(content).hexdigest()}.{suffix}"
    store.put(key, content)
    return key


def set_aside(store: Store, key: str) -> None:
    """Out of the readers' way, for a person to look at."""
    if (content := store.get(key)) is not None:
        store.put(f"damaged/{key}", content)
        store.delete(key)
    damaged.discard(key)
