"""Intervals of paired measures: Tango's of a difference of shares, Fieller's of a ratio of means, at 0.95."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq
from scipy.stats import beta, t

from caq.statistics.resampling import CONFIDENCE, Interval, Z


def tango(gained: int, lost: int, items: int) -> Interval:
    """Return Tango's score interval of (gained − lost) / items (Statistics in Medicine 17, 1998, p. 891).

    It is the set of differences that the score test does not refuse. Without any flip it is ± z² / (n + z²), where
    bootstrap and Wald intervals shrink to nothing.

    Args:
        gained: items good for the first model only.
        lost: items good for the second model only.
        items: all pairs, at least one.
    """
    if gained == lost == 0:
        half = Z**2 / (items + Z**2)
        return Interval(-half, half)
    if items in (gained, lost):
        # One end is the observed ±1 itself, a root of `excess` that would be found in place of the inner one.
        inner = (items - Z**2) / (items + Z**2)
        return Interval(inner, 1.0) if gained else Interval(-1.0, -inner)

    def excess(delta: float) -> float:
        # The squared score test against z², free of the division by a variance that is 0 at ±1.
        slope = -(gained + lost) + (2 * items - gained + lost) * delta
        root = math.sqrt(max(0.0, slope**2 + 8 * items * lost * delta * (1 - delta)))
        only_second = (root - slope) / (4 * items)
        variance = items * (2 * only_second + delta * (1 - delta))
        return float((gained - lost - items * delta) ** 2 - Z**2 * variance)

    observed = (gained - lost) / items
    low, high = (float(brentq(excess, end, observed, xtol=1e-12)) for end in (-1.0, 1.0))
    return Interval(low, high)


def upper_bound(events: int, items: int) -> float:
    """Return the upper end of Clopper and Pearson's exact interval of a share: 1.2 % for 0 of 313."""
    return float(beta.ppf((1 + CONFIDENCE) / 2, events + 1, items - events)) if events < items else 1.0


@dataclass(frozen=True)
class Ratio:
    """A ratio of means and its interval; both None where the denominator is not distinguishable from 0."""

    value: float | None
    interval: Interval | None


def fieller(numerators: Float[np.ndarray, " items"], denominators: Float[np.ndarray, " items"]) -> Ratio:
    """Return the ratio of the means of paired values with Fieller's interval (1954), of at least two items.

    Fieller's g is t² times the squared standard error of the denominator over its square: at 1 and above the
    denominator's own interval contains 0, and that of the ratio has no ends.
    """
    items = len(numerators)
    top, bottom = float(numerators.mean()), float(denominators.mean())
    (top_variance, covariance), (_, bottom_variance) = np.cov(numerators, denominators) / items
    t_squared = float(t.ppf((1 + CONFIDENCE) / 2, items - 1)) ** 2
    if bottom**2 <= t_squared * bottom_variance:
        return Ratio(None, None)
    ratio, per_square = top / bottom, t_squared / bottom**2
    g = per_square * bottom_variance
    centre = ratio - per_square * covariance
    inner = top_variance - 2 * ratio * covariance + ratio**2 * bottom_variance
    inner -= g * top_variance - per_square * covariance**2
    half = math.sqrt(per_square * max(0.0, inner))
    return Ratio(ratio, Interval(float((centre - half) / (1 - g)), float((centre + half) / (1 - g))))
