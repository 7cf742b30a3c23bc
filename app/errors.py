class HttpError(Exception):
    """A response other than 200: `detail` is text, or FastAPI's list of {loc, msg, type}."""

    def __init__(self, status: int, detail: object, headers: dict[str, str] | None = None):
        self.status, self.detail, self.headers = status, detail, headers or {}
        super().__init__(detail)


def retry_after(status: int, detail: str, seconds: int) -> HttpError:
    return HttpError(status, detail, {"retry-after": str(seconds)})
