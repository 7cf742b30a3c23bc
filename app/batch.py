from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from mlops.model import Model
from mlops.releases import Release

if TYPE_CHECKING:
    from app.challenger import Challenger


@dataclass(frozen=True)
class Live:
    """What answers: a release, its loaded champion, and the challenger of a rollout. Replaced as a whole, never changed."""

    release: Release
    model: Model
    challenger: "Challenger | None" = None


class Scores(msgspec.Struct, omit_defaults=True):
    """The challenger's scores of one request, or its fault; `seconds` it took, without the way there and back, if timed."""

    scores: list[float] | None = None
    seconds: float | None = None
    fault: str | None = None


class Result(NamedTuple):
    """The same for one row."""

    score: float | None
    seconds: float | None
    fault: str | None


@dataclass(slots=True)
class Batch:
    """The rows of one request and the champion's scores. In a rollout, for each row: the arm it is assigned to (1: the
    challenger) and the challenger's result once it is known; `answers` are the challenger's scores that the caller got."""

    live: Live
    at: float
    ids: Sequence[str]
    rows: Sequence[Any]
    scores: list[float]
    key: str | None = None  # the caller's own entity, if the contract names none
    caller: str | None = None  # the id of its API key
    arms: list[int] | None = None
    results: list[Result | None] = field(default_factory=list)
    answers: dict[int, float] = field(default_factory=dict)
    lines: list[bytes] | None = None  # of the log, if they are made already

    def pending(self) -> list[int]:
        """Positions of the rows that the challenger is still to score."""
        return [position for position, result in enumerate(self.results) if result is None]

    def take(self, positions: Sequence[int], scored: Scores) -> None:
        scores = scored.scores or [None] * len(positions)
        for position, score in zip(positions, scores, strict=True):
            self.results[position] = Result(score, scored.seconds, scored.fault)

    def answered(self) -> tuple[list[str], list[float], list[float]]:
        """Model version, score and prediction of each row, as the caller got them."""
        model, challenger = self.live.model, self.live.challenger
        versions, scores = [model.digest] * len(self.rows), list(self.scores)
        predictions = model.contract.predictions(scores)
        for position, score in self.answers.items():
            assert challenger
            versions[position], scores[position] = challenger.digest, score
            [predictions[position]] = challenger.contract.predictions([score])
        return versions, scores, predictions
