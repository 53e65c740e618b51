"""Outcomes as arrays, paired item by item, and the rule by which a paired loss is judged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int8

from caq.measure.record import HELPFULNESS, REFUSAL, SAFETY_PREFIX, Outcome
from caq.report.types import Rate, RowStatus, Settings
from caq.statistics.intervals import tango
from caq.statistics.resampling import wilson

#: One number an item: 1 good, 0 not, −1 not measured.
Goods = Int8[np.ndarray, " items"]
_NUMBERS = {True: 1, False: 0, None: -1}
_MARKS = "-01"


def deciding(measure: str) -> bool:
    """Whether a measure must be kept for a pass: others are only reported."""
    return measure in (REFUSAL, HELPFULNESS) or measure.startswith(SAFETY_PREFIX)


def goods(outcomes: Sequence[Outcome]) -> Goods:
    """Return what is good among outcomes."""
    return np.array([_NUMBERS[one.good] for one in outcomes], dtype=np.int8)


def marks(outcomes: Sequence[Outcome]) -> str:
    """Return outcomes as text, one of `1`, `0` and `-` an item."""
    return "".join(_MARKS[_NUMBERS[one.good] + 1] for one in outcomes)


def from_marks(text: str) -> Goods:
    """Return the array of a text that `marks` wrote."""
    return np.array([_MARKS.index(mark) - 1 for mark in text], dtype=np.int8)


def rate(outcomes: Goods) -> Rate | None:
    """Return the share of good outcomes among those measured, or None if none were."""
    items = int((outcomes >= 0).sum())
    good = int((outcomes == 1).sum())
    return Rate(good / items, wilson(good, items), items) if items else None


def judged(gained: int, lost: int, items: int, p_holm: float, settings: Settings) -> RowStatus:
    """Return whether a paired difference is shown to be within the margin, shown to be a loss, or neither.

    A loss that is significant and all the same within the margin is kept: the margin says what is accepted.
    """
    if tango(gained, lost, items).low > -settings.margin:
        return "kept"
    return "lost" if lost > gained and p_holm < settings.alpha else "undecided"
