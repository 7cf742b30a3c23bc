"""The geometry of charts, in a box of 100 by 100 with its origin at the top left; the template gives it size and colour."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

SIZE = 100.0
_EDGE = 6.0  # left free above and below
Spot = tuple[float, float | None, float | None, float | None]  # x, value, and its interval


@dataclass(frozen=True)
class Line:
    """Paths of an SVG: the values, and their intervals. `bounds`: the heights of values that matter; `top` and `bottom`:
    the values of the edges."""

    path: str
    band: str
    end: tuple[float, float]
    bounds: list[float]
    top: float
    bottom: float


def line(spots: Sequence[Spot], *bounds: float) -> Line | None:
    """None without a value. All values, the bounds and the last interval are in sight; wider intervals are cut off."""
    known = [(x, value) for x, value, _, _ in spots if value is not None and math.isfinite(value)]
    if not known:
        return None
    band = [(x, low, high) for x, _, low, high in spots if low is not None and high is not None]
    sight = [*(value for _, value in known), *bounds, *(band[-1][1:] if band else ())]
    low, high = min(sight), max(sight)
    low, high = (low, high) if high > low else (low - abs(low) / 2 - 1e-9, high + abs(high) / 2 + 1e-9)
    first, last = spots[0][0], spots[-1][0]

    def across(x: float) -> float:
        return SIZE * (x - first) / (last - first) if last > first else SIZE

    def down(value: float) -> float:
        height = _EDGE + (SIZE - 2 * _EDGE) * (high - value) / (high - low)
        return min(max(height, 0.0), SIZE)

    def path(ends: list[tuple[float, float]]) -> str:
        return "M" + " ".join(f"{across(x):.1f},{down(value):.1f}" for x, value in ends)

    around = [(x, upper) for x, _, upper in band] + [(x, lower) for x, lower, _ in reversed(band)]
    shape = f"{path(around)}z" if around else ""
    end = across(known[-1][0]), down(known[-1][1])
    return Line(path(known), shape, end, [down(bound) for bound in bounds], high, low)


def bars(rows: Sequence[Sequence[int]]) -> list[str]:
    """For each kind of rows (kind, bar) the path of its parts of all bars, stacked upwards."""
    most, count = max(map(sum, zip(*rows, strict=True)), default=0) or 1, len(rows[0]) if rows else 1
    paths, width, heights = [], 0.82 * SIZE / count, [SIZE] * count
    for kind in rows:
        parts = []
        for i, n in enumerate(kind):
            tall = (SIZE - _EDGE) * n / most
            heights[i] -= tall
            parts.append(f"M{(i + 0.09) * SIZE / count:.2f},{heights[i]:.2f}h{width:.2f}v{tall:.2f}h-{width:.2f}z")
        paths.append("".join(part for part, n in zip(parts, kind, strict=True) if n))
    return paths
