"""The bins of a model's profile: training fills them, serving counts the same ones."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def positions(bins: dict[str, Any], values: Sequence[Any] | np.ndarray) -> np.ndarray:
    """The bin of each value: its number among `edges` or `levels`; categories then have one for others; missing is last."""
    if "levels" in bins:
        place = {level: position for position, level in enumerate(bins["levels"])}
        other = len(place)
        return np.array([other + 1 if value is None else place.get(value, other) for value in values], np.int64)
    array = np.asarray(values, float)  # None becomes NaN
    return np.where(np.isnan(array), len(bins["edges"]) + 1, np.searchsorted(bins["edges"], array, side="left"))


def count(bins: dict[str, Any], values: Sequence[Any] | np.ndarray) -> np.ndarray:
    """Rows by bin, shape (bins,)."""
    return np.bincount(positions(bins, values), minlength=len(names(bins)))


def names(bins: dict[str, Any]) -> list[str]:
    if "levels" in bins:
        return [*map(str, range(len(bins["levels"]))), "other", "missing"]
    return [*map(str, range(len(bins["edges"]) + 1)), "missing"]
