"""How the verdict on a challenger came about: the judge's figures at each look, so that they can be watched growing."""

import time
from contextlib import suppress
from datetime import datetime

import msgspec

from mlops.errors import VerificationError
from mlops.registered_model import RegisteredModel
from mlops.releases import Release
from mlops.verdict import Check, Outcome, Verdict

_POINTS = 200
_SAVE_SECONDS = 10.0


class Figure(msgspec.Struct, array_like=True, frozen=True):
    name: str
    outcome: Outcome
    n: int | None
    estimate: float | None
    low: float | None
    high: float | None
    bound: float | str


class Point(msgspec.Struct, array_like=True, frozen=True):
    """One look, under the record `revision`."""

    at: datetime
    revision: int
    figures: list[Figure]


class Series:
    """Of one rollout; it continues with what was saved. Read by other threads than the one that adds to it."""

    def __init__(self, model: RegisteredModel, release: Release):
        self.points: tuple[Point, ...] = ()
        self.rollout = release.rollout
        self._store, self._key = model.store, f"{model.folder}/verdicts/{release.rollout}/series.json"
        self._saved, self._due = self.points, 0.0
        with suppress(ValueError, VerificationError):  # an unreadable one counts as never written
            self.points = self._saved = tuple(
                msgspec.json.decode(self._store.get(self._key) or b"[]", type=list[Point])
            )

    def add(self, at: datetime, release: Release, verdict: Verdict) -> None:
        figures = [_figure(each) for each in verdict.checks]
        points = [*self.points, Point(at, release.revision, figures)]
        if len(points) > _POINTS:  # the one that is closest to its neighbours is missed least
            del points[min(range(1, _POINTS), key=lambda i: points[i + 1].at - points[i - 1].at)]
        self.points = tuple(points)

    def save(self, at_once: bool = False) -> None:
        """At most every ten seconds, and only what is new."""
        if self.points is not self._saved and (at_once or time.monotonic() >= self._due):
            self._store.put(self._key, msgspec.json.encode(self.points))
            self._saved, self._due = self.points, time.monotonic() + _SAVE_SECONDS


def _figure(check: Check) -> Figure:
    estimate = check.estimate if isinstance(check.estimate, float | int) else None
    return Figure(check.name, check.outcome, check.n, estimate, check.low, check.high, check.bound)
