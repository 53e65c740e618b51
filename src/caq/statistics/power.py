"""What a paired comparison of so many items can see, and how many items it would take."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom, norm

from caq.statistics.intervals import upper_bound
from caq.statistics.resampling import Z

# Leaves out counts of flips so rare that they do not move a power's ninth digit.
TAIL = 1e-10


def noise(items: int, gained: int, lost: int) -> float:
    """Return the share of pairs that flip without a loss, either way alike: no more than both ways did, in sum.

    Flips to the worse beyond those to the better are loss, not noise. Few flips seen do not mean that there are none
    to come: the share is never below the bound that no flip at all would give.
    """
    return max(min(2 * gained, gained + lost) / items, upper_bound(0, items))


@lru_cache(maxsize=4096)
def detectable(items: int, noise: float, level: float, power: float) -> float | None:
    """Return the smallest true loss that McNemar's exact test finds with this power, or None if it can find none.

    The loss is flips to the worse that come on top of the noise. It is close to (z + z') √(discordant / items) with
    `discordant = noise + loss`, Connor's formula (1987), which forgets that counts are whole.

    Args:
        items: pairs.
        noise: share of them that flip without a loss, either way alike, in [0, 1].
        level: of the test, two-sided.
        power: in (0, 1).
    """
    if _power(1.0, items, noise, level) < power:
        return None
    return float(brentq(lambda loss: _power(loss, items, noise, level) - power, 0.0, 1.0, xtol=1e-6))


def _power(loss: float, items: int, noise: float, level: float) -> float:
    flipping = min(1.0, noise + loss)
    flips = np.arange(binom.ppf(TAIL, items, flipping), binom.isf(TAIL, items, flipping) + 1)
    gained = binom.ppf(level / 2, flips, 0.5)
    gained -= binom.cdf(gained, flips, 0.5) > level / 2
    to_better = max(0.0, (flipping - loss) / (2 * flipping))
    return float(binom.pmf(flips, items, flipping) @ binom.cdf(gained, flips, to_better))


def items_needed(items: int, flips: int, margin: float, power: float) -> int:
    """Return about how many items would show a model that lost nothing to be within the margin, with this power.

    It takes the observed share of flips for true; without any, as many items as Tango's interval needs for none.
    """
    none = Z**2 * (1 - margin) / margin
    some = (Z + float(norm.ppf(power))) ** 2 * flips / items / margin**2
    return math.floor(max(none, some)) + 1
