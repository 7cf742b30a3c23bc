from collections import defaultdict
from typing import Any

from app.errors import HttpError, retry_after
from app.settings import Settings

_SHARES = 4  # of everything there is, for one API key


class Budget:
    """What requests with a key may hold until they are answered, in all and of one key: no caller takes what others need."""

    def __init__(self, settings: Settings):
        self.body = settings.max_body_bytes
        self.all = max(self.body, settings.max_bytes_in_flight)
        self.share = max(self.body, self.all // _SHARES)
        self.requests = max(1, settings.max_in_flight // _SHARES)
        self.held = 0  # bytes
        self.of_key: dict[str, list[int]] = defaultdict(lambda: [0, 0])  # requests and bytes


class Held:
    """What one request holds while its block runs. Raises HttpError 429 if its key holds too much, 503 if all together do."""

    __slots__ = ("_budget", "_bytes", "_own")

    def __init__(self, budget: Budget, caller: str):
        self._budget, self._own, self._bytes = budget, budget.of_key[caller], 0

    def __enter__(self) -> "Held":
        if self._own[0] >= self._budget.requests:
            raise retry_after(429, f"more than {self._budget.requests} requests at once with this API key", 1)
        self._own[0] += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._own[0] -= 1
        self._own[1] -= self._bytes
        self._budget.held -= self._bytes

    def add(self, count: int) -> None:
        self._bytes += count
        self._own[1] += count
        self._budget.held += count

    async def read(self, scope: Any, receive: Any) -> bytearray:
        """The body. Raises HttpError 413 too."""
        budget, body = self._budget, bytearray()
        size = int(header(scope, b"content-length") or 0)
        while size <= budget.body:
            if self._own[1] > budget.share:
                raise retry_after(429, "too many bytes at once with this API key", 1)
            if budget.held > budget.all:
                raise retry_after(503, "too many bytes in flight", 1)
            message = await receive()
            if message["type"] == "http.disconnect":
                raise HttpError(400, "client disconnected")
            part = message.get("body", b"")
            self.add(len(part))
            body += part
            size = max(size, len(body))
            if size <= budget.body and not message.get("more_body"):
                return body
        detail = f"the body is larger than {budget.body} bytes; send fewer rows at a time"
        raise HttpError(413, detail, {"connection": "close"})


def header(scope: Any, wanted: bytes) -> str:
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == wanted), "")
