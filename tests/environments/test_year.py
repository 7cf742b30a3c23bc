from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from environments.local.year import WAYS, Year, picture, summary
from mlops.contract import Contract
from mlops.retraining import Event
from tests.synthetic import contract_yaml

CONTRACT = Contract.model_validate(contract_yaml())


def year(better: float) -> Year:
    """Four months of 50 rows a day; the loop's logits are `better` times as sharp as those of all other ways."""
    random = np.random.default_rng(0)
    day = [date(2024, 4, 1) + timedelta(days=n) for n in range(120) for _ in range(50)]
    logit = random.normal(size=len(day))
    y = (random.random(len(day)) < 1 / (1 + np.exp(-2 * logit))).astype(float)
    others = {way: 1 / (1 + np.exp(-logit)) for way in WAYS}
    rows = pl.DataFrame({"day": day, "y": y, **others, "loop": 1 / (1 + np.exp(-better * logit))})
    about: dict[str, Any] = {
        "run": "a",
        "action": "retrain",
        "day": date(2024, 5, 1),
        "by": "me",
        "host": "h",
        "pid": 1,
        "why": "calendar",
    }
    events = [Event(event=event, at=datetime(2024, 5, 1, tzinfo=UTC), **about) for event in ("started", "passed")]
    return Year(rows, events, [], [])


def test_the_loop_is_compared_with_each_other_way_by_months_and_weeks(tmp_path: Path) -> None:
    same = summary(CONTRACT, year(1))
    assert same["loop less"] == {way: [0.0, 0.0, 0.0] for way in WAYS if way != "loop"}
    sharper: dict[str, Any] = summary(CONTRACT, year(2))
    point, low, high = sharper["loop less"]["frozen"]
    assert low < point < high < 0
    assert point == pytest.approx(sharper["loss"]["loop"] - sharper["loss"]["frozen"], abs=2e-4)
    assert sharper["runs"] == ["2024-05-01 retrain: passed; calendar"]
    assert picture(CONTRACT, year(2), tmp_path / "year.png").stat().st_size > 10_000
