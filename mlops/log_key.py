"""What the prediction log says of callers in words that only its environment can make: ids, and hashed features."""

import hashlib
import hmac
import itertools
import secrets
import time

_COUNT_BITS, _TAG_BITS = 34, 40
_COUNT, _TAG = (1 << _COUNT_BITS) - 1, (1 << _TAG_BITS) - 1
_LOW = 62 - _TAG_BITS  # bits of the count behind the variant


class LogKey:
    """`secret` is the environment's. Whoever lacks it neither makes up the id of a prediction (one of 2^40 tries succeeds)
    nor finds a hashed value by trying all there are."""

    def __init__(self, secret: str, model: str):
        self._key = hashlib.sha256(f"{model}|{secret}".encode()).digest()
        # Two processes share an id if they are at the same count in the same millisecond.
        self._count = itertools.count(secrets.randbits(_COUNT_BITS))

    def new_id(self) -> str:
        """A UUIDv7 (RFC 9562): sorts by time, so that an outcome finds the hour of its prediction. Behind the time a count
        and a keyed hash of both."""
        return self._id(time.time_ns() // 1_000_000, next(self._count) & _COUNT)

    def id_time(self, prediction_id: str) -> float | None:
        """When a prediction was made, in Unix seconds; None if this is no id of this environment."""
        try:
            value = int(prediction_id.replace("-", ""), 16)
        except ValueError:
            return None
        millis, count = (
            value >> 80 & (1 << 48) - 1,
            (value >> 64 & 0xFFF) << _LOW | value >> _TAG_BITS & (1 << _LOW) - 1,
        )
        own = self._id(millis, count).encode()
        return millis / 1000 if hmac.compare_digest(own, prediction_id.encode(errors="replace")) else None

    def hashed(self, feature: str, value: object) -> str:
        """What the log has of a feature that the contract hashes."""
        return self._digest(f"{feature}|{value}".encode(errors="replace"), 8).hex()

    def _id(self, millis: int, count: int) -> str:
        tag = int.from_bytes(self._digest(b"%d %d" % (millis, count), _TAG_BITS // 8))
        value = (
            millis << 80 | 0x7 << 76 | count >> _LOW << 64 | 0x2 << 62 | (count & (1 << _LOW) - 1) << _TAG_BITS | tag
        )
        text = f"{value:032x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

    def _digest(self, content: bytes, size: int) -> bytes:
        return hashlib.blake2b(content, key=self._key, digest_size=size).digest()
