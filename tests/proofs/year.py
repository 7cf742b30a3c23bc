"""A year of the example through the running platform: what its own trainings do for callers.

The loop (calendar, calibration gap; gate, shadow, canary) against the first model untouched, the same with an intercept each day,
a training each month without gate or rollout, and the base rate: mean monthly loss, differences with 95 % intervals over weeks.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from environments.local.year import picture, run, summary
from mlops.environment import ROOT

_BEHIND = 0.005  # of the daily intercept, at most


def prove(folder: Path) -> dict[str, Any]:
    started = time.monotonic()
    contract, year = run(folder / "year")
    minutes = (time.monotonic() - started) / 60
    found: dict[str, Any] = summary(contract, year)
    picture(contract, year, ROOT / "docs" / "year.png")
    loss, ended = found["loss"], [event for event in year.events if event.event != "started"]
    wrong = [
        why
        for why, fault in {
            f"{len(ended)} recalibrations or trainings, 4 to 10 are expected": not 4 <= len(ended) <= 10,
            f"{minutes:.0f} minutes, 20 are allowed": minutes > 20,
            "the loop is no better than the first model": loss["loop"] >= loss["frozen"],
            "the loop is far behind a daily intercept": loss["loop"] - loss["recalibrated"] > _BEHIND,
            "a training failed": any(event.event == "failed" for event in ended),
            "a seasonal feature raised an alarm": any(
                shift.tier != "integrity" for each in year.drift for shift in each.alarms
            ),
        }.items()
        if fault
    ]
    return {
        "holds": not wrong,
        "reason": "; ".join(wrong),
        "minutes": round(minutes, 1),
        "rows": year.rows.height,
        **found,
    }
