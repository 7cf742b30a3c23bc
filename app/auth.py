import math

from app.errors import HttpError, retry_after
from app.metrics import Metrics
from mlops.access import ApiKey, Keys, Refused, Scope


class Auth:
    """The API keys of the access log; `replace` is called when it grows."""

    def __init__(self, metrics: Metrics):
        self._metrics, self._keys = metrics, Keys()

    def replace(self, keys: list[ApiKey]) -> None:
        self._keys.replace(keys)

    def check(self, authorization: str, scope: Scope) -> str:
        """The key's id. Raises HttpError 401, 403 or 429."""
        kind, _, secret = authorization.partition(" ")
        try:
            if not authorization:
                raise Refused("missing", 401, "send 'Authorization: Bearer <API key>'")
            return self._keys.find(secret if kind.lower() == "bearer" else "", scope).id
        except Refused as refused:
            self._metrics.auth_refused.labels(refused.reason).inc()
            if refused.status == 429:
                raise retry_after(429, refused.detail, math.ceil(refused.wait)) from None
            headers = {"www-authenticate": "Bearer"} if refused.status == 401 else {}
            raise HttpError(refused.status, refused.detail, headers) from None
