"""The records of the prediction log and of the outcomes, and segments of them that a crash cannot make unreadable."""

import hashlib
import os
import time
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec


class PredictionRecord(msgspec.Struct, omit_defaults=True):
    """One scored row. `at` and `event` (when the event of the row takes place, if the request says so) are Unix times in
    seconds; `model_version` (a digest) and `score` are what the caller got; `features` are those the contract keeps.

    In a rollout `arm` is the model assigned to the row (1: the challenger), the scores are both models', and `fault` is
    why the challenger has none (error, nan, slow, died) or was not called (busy, dropped). `caller`: the id of the API key.
    """

    id: str
    at: float
    revision: int
    model_version: str
    score: float
    prediction: float
    features: dict[str, Any]
    entity: str | None = None
    event: float | None = None
    arm: int | None = None
    champion_score: float | None = None
    challenger_score: float | None = None
    challenger_seconds: float | None = None
    fault: str | None = None
    caller: str | None = None


class OutcomeRecord(msgspec.Struct):
    """The true value of a prediction's target; `at` is when it was received, in Unix seconds."""

    id: str
    value: float
    at: float


def hashed(value: Any) -> str:
    """What the log has of a feature that the contract hashes."""
    return hashlib.sha256(str(value).encode()).hexdigest()[:16]


_encode = msgspec.json.Encoder().encode


def line(record: PredictionRecord | OutcomeRecord) -> bytes:
    body = _encode(record)
    return b"%08x %s\n" % (zlib.crc32(body), body)


def lines(segment: bytes) -> Iterator[bytes]:
    """The records of a segment as JSON; a line that was cut short by a crash, or changed, is skipped."""
    for raw in segment.splitlines():
        if raw[8:9] == b" " and raw[:8] == b"%08x" % zlib.crc32(raw[9:]):
            yield raw[9:]


def segment_key(kind: str, model: str, at: float, revision: int, name: str) -> str:
    """`predictions/<model>/<day>/<hour>/<revision>-<name>.log`: hour and revision are known from a listing."""
    return f"{kind}/{model}/{datetime.fromtimestamp(at, UTC):%Y-%m-%d/%H}/{revision:08d}-{name}.log"


def new_id() -> str:
    """A UUIDv7 (RFC 9562): sorts by time, so that an outcome finds the hour of its prediction."""
    value = (time.time_ns() // 1_000_000 << 80) | int.from_bytes(os.urandom(10))
    value = value & ~(0xF << 76) & ~(0x3 << 62) | 0x7 << 76 | 0x2 << 62
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def id_time(prediction_id: str) -> float | None:
    """When a prediction was made, in Unix seconds; None if this is not a UUIDv7."""
    text = prediction_id.replace("-", "")
    if len(prediction_id) != 36 or len(text) != 32 or text[12] != "7":
        return None
    try:
        return (int(text, 16) >> 80) / 1000
    except ValueError:
        return None
