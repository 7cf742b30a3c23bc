"""Inference that is valid under any number of looks: e-processes and confidence sequences.

An e-process is on average at most 1 while its hypothesis holds, at every look, so it reaches 1/alpha with a chance of at
most alpha (Ville's inequality). A confidence sequence is such an interval for every look at once.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import special, stats

_HUGE = 1e100
_TUNED_DAYS = 14  # where the confidence sequence is narrowest


def log_e_rate(events: int, attempts: int, bound: float) -> float:
    """Logarithm of the e-value against "the rate is at most `bound`" after `events` in `attempts`.

    Likelihood ratio to the bound, mixed over the rates above it by a Beta distribution with a mean of ten times the bound
    (Howard, Ramdas, McAuliffe, Sekhon 2021, one-sided beta-binomial mixture). For an exceedance of a threshold this is
    the test of a quantile (Howard, Ramdas 2022).
    """
    if attempts == 0:
        return 0.0
    a = 0.5
    b = a * max(1 / (10 * bound) - 1, 1.0)
    prior = special.betaln(a, b) + _log(special.betaincc(a, b, bound))
    hits, misses = a + events, b + attempts - events
    posterior = special.betaln(hits, misses) + _log(special.betaincc(hits, misses, bound))
    return float(posterior - prior - events * math.log(bound) - (attempts - events) * math.log1p(-bound))


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def mean_sequence(days: Sequence[float] | np.ndarray, alpha: float) -> tuple[float, float, float]:
    """(mean, low, high) of independent daily values of shape (days,), each bound missed with a chance of `alpha` over all
    looks.

    Asymptotic confidence sequence with a normal mixture (Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas 2024), narrowest at 14
    days; for few days its radius is widened as Student's t is to the normal.
    """
    values = _values(days)
    mean = float(values.mean()) if len(values) else math.nan
    if len(values) < 2:
        return mean, -math.inf, math.inf
    radius = radius_of_mean(len(values), alpha) * float(values.std(ddof=1))
    return mean, mean - radius, mean + radius


def _values(days: Sequence[float] | np.ndarray) -> np.ndarray:
    """Whatever a caller sent: their squares are finite."""
    return np.clip(np.asarray(days, float), -_HUGE, _HUGE)


def radius_of_mean(n: int, alpha: float) -> float:
    """In standard deviations of a day, for n >= 2 days."""
    rho = (-2 * math.log(2 * alpha) + math.log(-2 * math.log(2 * alpha) + 1)) / _TUNED_DAYS
    boundary = math.sqrt(2 * (n * rho + 1) / (n * rho) * math.log1p(math.sqrt(n * rho + 1) / (2 * alpha)))
    return float(stats.t.isf(stats.norm.sf(boundary), n - 1)) / math.sqrt(n)


def upper_bound(days: Sequence[float] | np.ndarray, alpha: float) -> float:
    """Of the mean of independent daily values, for one look at a number of days that was fixed before; Student's t."""
    values = _values(days)
    return float(values.mean() + stats.t.isf(alpha, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))


def days_needed(spread: float, effect: float, alpha: float = 0.05, power: float = 0.8, most: int = 1000) -> int | None:
    """After how many days a difference of `effect` is shown with that power, if a day's has the standard deviation `spread`;
    None: not within `most`."""
    for n in range(2, most + 1):
        if spread * (radius_of_mean(n, alpha) + float(stats.norm.isf(1 - power)) / math.sqrt(n)) <= effect:
            return n
    return None


def log_e_split(counts: Sequence[int], shares: Sequence[float]) -> float:
    """Logarithm of the e-value against "entities were split by `shares`" (Lindon, Malek 2022: Dirichlet-multinomial)."""
    n, concentration = np.asarray(counts, float), 100.0 * np.asarray(shares, float)
    if min(shares) <= 0:
        return 0.0
    mixed = special.gammaln(concentration.sum()) - special.gammaln(concentration.sum() + n.sum())
    mixed += (special.gammaln(concentration + n) - special.gammaln(concentration)).sum()
    return float(mixed - (n * np.log(shares)).sum())
