"""The bins of a model's profile: training fills them, serving counts the same ones."""

from collections.abc import Sequence
from typing import Any

import numpy as np

_LEAST_SHARE = 1e-4


def positions(bins: dict[str, Any], values: Sequence[Any] | np.ndarray) -> np.ndarray:
    """The bin of each value: its number among `edges` or `levels`; categories then have one for others; missing is last."""
    if "levels" in bins:
        place = {level: position for position, level in enumerate(bins["levels"])}
        other = len(place)
        return np.array([other + 1 if value is None else place.get(value, other) for value in values], np.int64)
    array = np.asarray(values, float)  # None becomes NaN
    found = np.zeros(len(array), np.int16)
    for edge in bins["edges"]:  # far faster than a search for each value
        found += array > edge
    found[np.isnan(array)] = len(bins["edges"]) + 1
    return found


def count(bins: dict[str, Any], values: Sequence[Any] | np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
    """Rows by bin, shape (bins,); `rows`: how many have each value, if not one."""
    return np.bincount(positions(bins, values), rows, len(names(bins))).astype(np.int64)


def psi(expected: Sequence[float] | np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Population stability index of counts (…, bins) against expected shares (bins,) or (…, bins); shape (…). NaN where
    there is no row. Shares are at least 1e-4, as in the rules of Prometheus."""
    with np.errstate(invalid="ignore"):
        share = np.maximum(counts / counts.sum(-1, keepdims=True), _LEAST_SHARE)
    expected = np.maximum(expected, _LEAST_SHARE)
    return ((share - expected) * np.log(share / expected)).sum(-1)


def names(bins: dict[str, Any]) -> list[str]:
    if "levels" in bins:
        return [*map(str, range(len(bins["levels"]))), "other", "missing"]
    return [*map(str, range(len(bins["edges"]) + 1)), "missing"]
