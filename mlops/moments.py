"""Moments in time, read alike everywhere: a date is its midnight, a time without a zone is the contract's local time."""

from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

_YEARS = (1969, 2200)


def moment(value: str | date, zone: str = "UTC") -> datetime:
    """In UTC. In the hour that a clock change repeats, the first one counts. Raises ValueError."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.strip())
        except ValueError:
            raise ValueError(f"{value[:40]!r} is no time: write ISO 8601 (2024-05-01, 2024-05-01T12:00:00Z)") from None
    at = value if isinstance(value, datetime) else datetime(value.year, value.month, value.day)
    if _YEARS[0] < at.year < _YEARS[1]:
        found = (at if at.tzinfo else at.replace(tzinfo=ZoneInfo(zone))).astimezone(UTC)
        if _YEARS[0] < found.year < _YEARS[1]:  # a zone moves a time over the edge
            return found
    raise ValueError(f"{at:%Y-%m-%d} is not between 1970 and 2200")


def shown(at: datetime) -> str:
    """For people; it can be pasted where a time is asked for."""
    return f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
