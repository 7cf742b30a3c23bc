from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt

from environments.local.traffic import Answer
from mlops.releases import Release


def timeline(log: list[Release], answers: list[Answer], file: Path) -> Path:
    """Answers a second by model, with the releases as lines; seconds without traffic are left out."""
    seconds = sorted({int(answer.at) for answer in answers})
    position = {second: i for i, second in enumerate(seconds)}
    models = list(dict.fromkeys(answer.model for answer in answers if answer.model))
    counts = np.zeros((len(models), len(seconds)))
    for answer in answers:
        if answer.model:
            counts[models.index(answer.model), position[int(answer.at)]] += 1
    figure, ax = plt.subplots(figsize=(10, 3.2), layout="constrained")
    ax.stackplot(range(len(seconds)), counts, labels=[model[:12] for model in models], step="mid", alpha=0.85)
    for release in log:
        at = int(np.searchsorted(seconds, release.at.timestamp()))
        ax.axvline(at, color="black", linewidth=0.8, linestyle="--")
        ax.text(at, ax.get_ylim()[1], f" {release.epoch}", va="top", fontsize=8)
    ax.set_xlabel("seconds with traffic; dashed: release records, by epoch")
    ax.set_ylabel("answers a second")
    ax.legend(loc="lower right", fontsize=8)
    figure.savefig(file, dpi=110)
    plt.close(figure)
    return file
