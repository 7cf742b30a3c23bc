from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from environments.local.traffic import Answer
from mlops.releases import Release, serving


def timeline(log: list[Release], answers: list[Answer], file: Path) -> Path:
    """Answers a second by model version, with the releases as lines, and the challenger's share of the entities; seconds
    without traffic are left out."""
    seconds = sorted({int(answer.at) for answer in answers})
    position = {second: i for i, second in enumerate(seconds)}
    versions = list(dict.fromkeys(answer.model_version for answer in answers if answer.model_version))
    counts = np.zeros((len(versions), len(seconds)))
    for answer in answers:
        if answer.model_version:
            counts[versions.index(answer.model_version), position[int(answer.at)]] += 1
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    ax = figure.subplots()
    ax.stackplot(range(len(seconds)), counts, labels=[version[:12] for version in versions], step="mid", alpha=0.85)
    for release in log:
        at = int(np.searchsorted(seconds, release.at.timestamp()))
        ax.axvline(at, color="black", linewidth=0.8, linestyle="--")
        ax.text(at, ax.get_ylim()[1], f" {release.revision}", va="top", fontsize=8)
    shares = [_share(log, second) for second in seconds]
    beside = ax.twinx()
    beside.step(range(len(seconds)), shares, where="mid", color="black", linewidth=1.2, label="challenger's share")
    beside.set_ylim(0, 102)
    beside.set_ylabel("challenger's share, %")
    ax.set_xlabel("seconds with traffic; dashed: releases, by revision")
    ax.set_ylabel("answers a second")
    ax.legend(loc="lower right", fontsize=8)
    figure.savefig(file, dpi=110)
    return file


def _share(log: list[Release], second: int) -> float:
    release = serving(log, datetime.fromtimestamp(second, UTC))
    return 100 * (release.weight or 0.0) if release and release.in_rollout else 0.0
