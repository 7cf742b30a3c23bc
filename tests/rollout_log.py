"""A prediction log of two models, written as the app writes it, in which a fault can be planted."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from mlops import log_schema
from mlops.releases import Release
from mlops.store import Store
from tests.ids import new_id
from tests.live_log import put
from tests.synthetic import MODEL

START = datetime(2024, 6, 1, 12, tzinfo=UTC)


@dataclass
class Rows:
    """`days` of the event with so many rows each; arrays have the shape (rows,). Both models see the truth through noise of
    their own; that of a day is shared by its rows."""

    days: int = 1
    a_day: int = 300
    seed: int = 0
    worse: float = 0.0  # noise of the challenger's logits beyond the champion's

    def __post_init__(self) -> None:
        random = np.random.default_rng(self.seed)
        n = self.days * self.a_day
        self.day = np.repeat(np.arange(self.days), self.a_day)
        truth = random.normal(size=n) + 0.5 * random.normal(size=self.days)[self.day]
        self.champion = _p(truth + 0.5 * random.normal(size=n))
        self.challenger = _p(truth + (0.5 + self.worse) * random.normal(size=n))
        self.y = (random.random(n) < _p(truth)).astype(float)
        self.color = random.choice(["red", "green", "blue"], n)
        self.draw = random.random(n)  # below the weight: the challenger answers
        self.fault: list[str | None] = [None] * n


def _p(logit: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logit))


@dataclass
class Log:
    store: Store
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    ids: list[str] = field(default_factory=list)

    def write(self, release: Release, rows: Rows, outcomes: bool = True, first_day: int = 0) -> list[str]:
        """One segment of predictions, one of outcomes; returns their keys."""
        scored = [self._row(release, rows, i, first_day) for i in range(len(rows.y))]
        self.ids += [row.id for row in scored]
        at = self.at.timestamp()
        keys = [put(self.store, "predictions", MODEL, at, release.revision, *scored)]
        if outcomes:
            told = zip(scored, rows.y.tolist(), strict=True)
            known = [log_schema.OutcomeRecord(row.id, value, at) for row, value in told]
            keys.append(put(self.store, "outcomes", MODEL, at, 0, *known))
        return keys

    def _row(self, release: Release, rows: Rows, i: int, first_day: int) -> log_schema.PredictionRecord:
        assert release.challenger
        fault = rows.fault[i]
        arm = int(rows.draw[i] < (release.weight or 0))
        challenger = float(rows.challenger[i]) if fault in (None, "slow") else None
        answered: dict[str, Any] = {"model_version": release.champion, "score": float(rows.champion[i])}
        if arm and challenger is not None:
            answered = {"model_version": release.challenger, "score": challenger}
        event = START + timedelta(days=first_day + int(rows.day[i]), seconds=i % rows.a_day)
        return log_schema.PredictionRecord(
            id=new_id(), at=self.at.timestamp() + i / 1e5, revision=release.revision, prediction=float(answered["score"] >= 0.5),
            features={"color": str(rows.color[i]), "region": "north"}, entity=f"c{i}", event=event.timestamp(), arm=arm,
            champion_score=float(rows.champion[i]), challenger_score=challenger, challenger_seconds=0.001, fault=fault, **answered,
        )  # fmt: skip
