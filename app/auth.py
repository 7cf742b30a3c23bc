import hmac
import math
import time
from datetime import UTC, datetime

from app.errors import HttpError, retry_after
from app.metrics import Metrics
from mlops.access import ApiKey, Scope, sha256


class _Allowance:
    """A token bucket: `per_second` requests on average; a burst of two seconds' worth, at least one."""

    def __init__(self, per_second: float):
        self.per_second, self.most, self.at = per_second, max(1.0, 2 * per_second), time.monotonic()
        self.tokens = self.most

    def take(self) -> float:
        """0 if there was a token, else the seconds until the next."""
        now = time.monotonic()
        self.tokens = min(self.most, self.tokens + (now - self.at) * self.per_second)
        self.at = now
        if self.tokens < 1:
            return (1 - self.tokens) / self.per_second
        self.tokens -= 1
        return 0


class Auth:
    """The API keys of the access log; `replace` is called when it grows."""

    def __init__(self, metrics: Metrics):
        self._metrics = metrics
        self._keys: dict[str, ApiKey] = {}
        self._allowances: dict[str, _Allowance] = {}

    def replace(self, keys: list[ApiKey]) -> None:
        kept = self._allowances
        self._allowances = {
            key.id: kept[key.id]
            if key.id in kept and kept[key.id].per_second == key.per_second
            else _Allowance(key.per_second)
            for key in keys
        }
        self._keys = {key.id: key for key in keys}

    def check(self, authorization: str, scope: Scope) -> None:
        """Raises HttpError 401, 403 or 429."""
        if not authorization:
            raise self._refuse("missing", 401, "send 'Authorization: Bearer <API key>'")
        kind, _, secret = authorization.partition(" ")
        key = self._keys.get(secret[6:14]) if secret.startswith("mlops_") else None
        if kind.lower() != "bearer" or key is None or not hmac.compare_digest(sha256(secret), key.sha256):
            raise self._refuse("unknown", 401, "unknown API key")
        if key.revoked:
            raise self._refuse("revoked", 401, "the API key was revoked")
        if key.expires and key.expires < datetime.now(UTC):
            raise self._refuse("expired", 401, "the API key has expired")
        if scope not in key.scopes:
            raise self._refuse("scope", 403, f"the API key lacks the scope {scope!r}")
        if wait := self._allowances[key.id].take():
            self._metrics.auth_refused.labels("limit").inc()
            raise retry_after(429, f"more than {key.per_second:g} requests/s with this API key", math.ceil(wait))

    def _refuse(self, reason: str, status: int, detail: str) -> HttpError:
        self._metrics.auth_refused.labels(reason).inc()
        return HttpError(status, detail, {"www-authenticate": "Bearer"} if status == 401 else {})
