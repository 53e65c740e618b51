"""Intervals and paired tests for the measures of this package, at a confidence of 0.95."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import binomtest, norm, t, ttest_1samp

CONFIDENCE = 0.95
_TAILS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
#: The normal distribution's two-sided quantile.
Z = float(norm.ppf(_TAILS[1]))
# Bounds a block of resamples to 32 MB of counts.
BLOCK_ELEMENTS = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A confidence interval, both ends included."""

    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, its bootstrap percentile interval, and the two-sided p value of no difference."""

    mean: float
    interval: Interval
    p: float


@dataclass(frozen=True)
class Spread:
    """Runs that differ in their seed: mean, sample standard deviation, t interval of the mean.

    `deviation` and `interval` are None for a single run, which tells nothing about either.
    """

    runs: int
    mean: float
    deviation: float | None
    interval: Interval | None


def mcnemar(gained: int, lost: int) -> float:
    """Return the exact two-sided p value that gains and losses among paired items are equally likely."""
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def holm(values: Sequence[float]) -> tuple[float, ...]:
    """Return Holm's adjusted p values (1979): any below alpha is false with a probability of at most alpha."""
    ordered = sorted(range(len(values)), key=values.__getitem__)
    adjusted, highest = [0.0] * len(values), 0.0
    for rank, index in enumerate(ordered):
        highest = max(highest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = highest
    return tuple(adjusted)


def wilson(good: int, items: int) -> Interval:
    """Return Wilson's score interval of a share, of at least one item."""
    share, spread = good / items, Z**2 / items
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def paired_bootstrap(
    ours: Sequence[float] | Float[np.ndarray, " items"],
    reference: Sequence[float] | Float[np.ndarray, " items"],
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """Bootstrap the mean of `ours - reference` over items; the same seed gives the same interval.

    Resampling n items with replacement is drawing the counts of the distinct differences from a
    multinomial, which for right-or-wrong outcomes is three numbers a resample.

    Raises:
        ValueError: the sequences are empty or differ in length.
    """
    differences = np.asarray(ours, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    if differences.size == 0 or len(ours) != len(reference):
        raise ValueError(f"paired items are needed; got {len(ours)} and {len(reference)}")
    values, counts = np.unique(differences, return_counts=True)
    generator = np.random.default_rng(seed)
    block = max(1, BLOCK_ELEMENTS // values.size)
    sizes = [min(block, resamples - done) for done in range(0, resamples, block)]
    draws = [generator.multinomial(differences.size, counts / differences.size, size=size) @ values for size in sizes]
    return _difference(differences, np.concatenate(draws) / differences.size)


def crossed_bootstrap(
    differences: Float[np.ndarray, "seeds items"], *, resamples: int = 10_000, seed: int = 0
) -> Difference:
    """Bootstrap the mean of paired differences over seeds and items, both resampled.

    The same items answered under several seeds are not independent: pooling them would make the interval too
    short, and so would taking the seeds at hand for all there are. With one seed this is `paired_bootstrap`.

    Raises:
        ValueError: there is nothing to resample.
    """
    if differences.size == 0:
        raise ValueError("paired items are needed")
    seeds, items = differences.shape
    # Items with the same outcomes under every seed are drawn together: right-or-wrong outcomes make few patterns.
    patterns, counts = np.unique(differences, axis=1, return_counts=True)
    generator = np.random.default_rng(seed)
    block = max(1, BLOCK_ELEMENTS // counts.size)
    means = []
    for size in (min(block, resamples - done) for done in range(0, resamples, block)):
        rows = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=size)
        columns = generator.multinomial(items, counts / items, size=size)
        means.append(((rows @ patterns) * columns).sum(1) / (seeds * items))
    return _difference(differences, np.concatenate(means))


def _difference(differences: Float[np.ndarray, ...], means: Float[np.ndarray, " resamples"]) -> Difference:
    """Return what resampled means say; p is twice the share beyond 0, and never less than one resample's."""
    low, high = np.quantile(means, _TAILS)
    beyond = min(np.count_nonzero(means <= 0), np.count_nonzero(means >= 0))
    p = min(1.0, 2 * (int(beyond) + 1) / (means.size + 1))
    return Difference(float(differences.mean()), Interval(float(low), float(high)), p)


def student(values: Sequence[float]) -> float:
    """Return the two-sided p value of Student's t test that values, two at least, have a mean of 0."""
    if len(set(values)) == 1:
        return float(values[0] == 0)
    return float(ttest_1samp(values, 0).pvalue)


def across_seeds(values: Sequence[float]) -> Spread:
    """Summarise one measure over runs.

    Raises:
        ValueError: there are no runs.
    """
    if not values:
        raise ValueError("at least one run is needed")
    runs, mean = len(values), float(np.mean(values))
    if runs == 1:
        return Spread(1, mean, None, None)
    deviation = float(np.std(values, ddof=1))
    half = float(t.ppf(_TAILS[1], runs - 1)) * deviation / math.sqrt(runs)
    return Spread(runs, mean, deviation, Interval(mean - half, mean + half))
