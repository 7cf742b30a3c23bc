"""The records of the prediction log and of the outcomes, and segments of them that a crash cannot make unreadable."""

import hashlib
import re
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta

# What no record exceeds, so that nothing which reads them has to expect more.
MAX_TEXT = 200  # characters of a category
FLOAT32 = 3.4e38  # a number: what a graph's inputs and outputs can hold
Text = Annotated[str, Meta(max_length=MAX_TEXT)]
Short = Annotated[str, Meta(max_length=64)]
Entity = Annotated[str, Meta(max_length=1000)]
Number = Annotated[float, Meta(ge=-FLOAT32, le=FLOAT32)]
Seconds = Annotated[float, Meta(ge=0, le=86400 * 365 * 10)]
Unix = Annotated[float, Meta(ge=0, le=datetime(2200, 1, 1, tzinfo=UTC).timestamp())]
Revision = Annotated[int, Meta(ge=0, lt=2**31)]
Features = Annotated[dict[Text, Text | Number | bool | None], Meta(max_length=1000)]


class PredictionRecord(msgspec.Struct, omit_defaults=True):
    """One scored row. `at` and `event` (when the event of the row takes place, if the request says so) are Unix times in
    seconds; `model_version` (a digest) and `score` are what the caller got; `features` are those the contract keeps.

    In a rollout `arm` is the model assigned to the row (1: the challenger), the scores are both models', and `fault` is
    why the challenger has none (error, nan, slow, died) or was not called (busy, dropped). `caller`: the id of the API key.
    """

    id: Short
    at: Unix
    revision: Revision
    model_version: Short
    score: Number
    prediction: Number
    features: Features
    entity: Entity | None = None
    event: Unix | None = None
    arm: Annotated[int, Meta(ge=0, le=1)] | None = None
    champion_score: Number | None = None
    challenger_score: Number | None = None
    challenger_seconds: Seconds | None = None
    fault: Short | None = None
    caller: Text | None = None


class OutcomeRecord(msgspec.Struct):
    """The true value of a prediction's target; `at` is when it was received, in Unix seconds, `caller` the API key's id."""

    id: Short
    value: Number
    at: Unix
    caller: Text | None = None


Record = PredictionRecord | OutcomeRecord
Kind = type[PredictionRecord] | type[OutcomeRecord]


_encode = msgspec.json.Encoder().encode
_decode: dict[Kind, Any] = {kind: msgspec.json.Decoder(kind).decode for kind in (PredictionRecord, OutcomeRecord)}


def line(record: Record) -> bytes:
    """Raises msgspec.ValidationError where readers would not take it: beyond the bounds, or not finite."""
    body = _encode(record)
    _decode[type(record)](body)
    return b"%08x %s\n" % (zlib.crc32(body), body)


def lines(segment: bytes) -> Iterator[bytes]:
    """The records of a segment as JSON; a line that was cut short by a crash, or changed, is skipped."""
    for raw in segment.splitlines():
        if raw[8:9] == b" " and raw[:8] == b"%08x" % zlib.crc32(raw[9:]):
            yield raw[9:]


def records(segment: bytes, kind: Kind) -> tuple[list[Any], int]:
    """The records of a segment, and the number of its lines that are none; the last one may have been cut short."""
    found, lost, decode = [], 0, _decode[kind]
    for raw in segment.splitlines(keepends=True):
        try:
            [body] = lines(raw)
            found.append(decode(body))
        except (ValueError, RecursionError):  # no such line; or what it has is no record
            lost += raw.endswith(b"\n")
    return found, lost


def segment_key(kind: str, model: str, at: float, revision: int, name: str) -> str:
    """`predictions/<model>/<day>/<hour>/<revision>-<name>.log`: hour and revision are known from a listing. `name`: the
    SHA-256 of the content, once it is whole."""
    return f"{kind}/{model}/{datetime.fromtimestamp(at, UTC):%Y-%m-%d/%H}/{revision:08d}-{name}.log"


def intact(key: str, content: bytes) -> bool:
    """Whether a file of the log has the content that it is named by; the names of before tell none."""
    told = re.search(r"-([0-9a-f]{64})\.\w+$", key)
    return told is None or told[1] == hashlib.sha256(content).hexdigest()
