"""How much of what alignment added is left: (quantized − base) / (aligned − base)."""

from __future__ import annotations

import numpy as np

from caq.report.pairing import Goods
from caq.report.types import Gap
from caq.statistics.intervals import fieller


def gap(aligned: Goods, base: Goods, model: Goods) -> Gap:
    """Return the gap retained on the items that all three arms have."""
    all_three = (aligned >= 0) & (base >= 0) & (model >= 0)
    origin = base[all_three].astype(np.float64)
    if len(origin) < 2:
        return Gap(None, None, f"{len(origin)} items were measured of all three; an interval needs two")
    added, left = aligned[all_three] - origin, model[all_three] - origin
    ratio = fieller(left, added)
    if ratio.value is None:
        return Gap(
            None,
            None,
            f"the aligned model and its base differ by {100 * float(added.mean()):.1f} points on {len(origin)} items, "
            "which is not distinguishable from 0",
        )
    return Gap(ratio.value, ratio.interval)
