"""The drift analysis as a table, as a page with a plot of each feature, and by Evidently where that is installed."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from mlops.errors import UserError
from mlops.registered_model import RegisteredModel
from mlops.report import render
from monitoring import evidently
from monitoring.daily import logged_bins
from monitoring.drift import Analysis, Shift
from monitoring.watch import Watched

_LEAST = 0.001  # a smaller rise of a share is not shown
_PAGE = Path(__file__).parent / "templates" / "drift.html"


def rows(found: Analysis) -> list[list[str]]:
    """feature, tier, effect, bound, chance, effect against the recent weeks, alarm; the largest against its bound first."""
    shown = [each for each in found.shifts if each.aspect == "distribution" or each.alarm or abs(each.effect) >= _LEAST]
    ordered = sorted(shown, key=lambda shift: shift.effect / shift.bound, reverse=True)
    return [[each.name, each.tier, _effect(each, each.effect), _effect(each, each.bound), f"{each.p:.4f}",
             "" if math.isnan(each.recent) else _effect(each, each.recent), "alarm" * each.alarm] for each in ordered]  # fmt: skip


def _effect(shift: Shift, value: float) -> str:
    return f"PSI {value:.3f}" if shift.aspect == "distribution" else f"{value:+.1%}"


def page(model: RegisteredModel, watched: Watched) -> str:
    found, profile = watched.drift, watched.champion.json("profile.json")
    plots = {
        name: _shares(watched, name, bins, profile) for name, bins in logged_bins(watched.contract, profile).items()
    }
    return render(_PAGE, model=model.name, found=found, rows=rows(found), plots=plots)


def _shares(
    watched: Watched, name: str, bins: dict[str, Any], profile: dict[str, Any]
) -> list[tuple[str, float, float]]:
    """For each bin its label, its share in the training and in the window."""
    counts = np.array([watched.days.counts[day][name] for day in watched.drift.days]).reshape(-1, len(bins["expected"]))
    now = (counts.sum(0) / max(counts.sum(), 1)).tolist()
    return list(zip(_labels(profile["bins"][name]), bins["expected"], now, strict=True))


def _labels(bins: dict[str, Any]) -> list[str]:
    if "levels" in bins:
        return [*bins["levels"], "other", "missing"]
    edges = [f"{edge:g}" for edge in bins["edges"]]
    return [*(f"≤ {edge}" for edge in edges), f"> {edges[-1]}" if edges else "all", "missing"]


def write(model: RegisteredModel, folder: Path, watched: Watched, kind: str) -> Path:
    """`kind`: html or evidently; returns where it is."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"drift-{watched.at:%Y%m%d-%H%M%S}.html"
    if kind == "evidently":
        return evidently.write(model, file, watched)
    if kind != "html":
        raise UserError("report", kind, "write html or evidently")
    file.write_text(page(model, watched), "utf-8")
    return file
