"""How answers moved from the aligned model to another, where they went, which letters were chosen, what gap is left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy.stats import binom

from caq.items.questions import LETTERS
from caq.measure.record import Item, Outcome
from caq.report.pairing import Goods, goods
from caq.report.types import Drift, Flips, Gap, Letters
from caq.statistics.intervals import fieller


def flips(aligned: Sequence[Outcome], model: Sequence[Outcome]) -> Flips:
    """Count how outcomes moved on one measure; items that either lacks are in no count."""
    theirs, ours = goods(aligned), goods(model)
    lost, gained = (theirs == 1) & (ours == 0), (theirs == 0) & (ours == 1)
    both_bad = (theirs == 0) & (ours == 0)
    moved = both_bad & np.array([_moved(a, b) for a, b in zip(aligned, model, strict=True)], dtype=bool)
    return Flips(
        kept_good=int(((theirs == 1) & (ours == 1)).sum()),
        kept_bad=int((both_bad & ~moved).sum()),
        lost=int(lost.sum()),
        gained=int(gained.sum()),
        moved=int(moved.sum()),
        lost_items=_positions(lost),
        gained_items=_positions(gained),
        moved_items=_positions(moved),
    )


def _moved(theirs: Outcome, ours: Outcome) -> bool:
    return theirs.chosen is not None and ours.chosen is not None and theirs.chosen != ours.chosen


def _positions(chosen: np.ndarray) -> tuple[int, ...]:
    return tuple(np.flatnonzero(chosen).tolist())


def drift(
    items: Sequence[Item], aligned: Sequence[Outcome], base: Sequence[Outcome], model: Sequence[Outcome]
) -> Drift:
    """Return where flipped answers went, with the exact p value of the Poisson binomial distribution.

    A flip of a question with k options would fall on the base's answer with probability 1 / (k − 1). Responses
    without a choice, or with a letter that the question lacks, are no answers.
    """
    flipped = informative = to_base = 0
    chances = []
    for item, theirs, bases, ours in zip(items, aligned, base, model, strict=True):
        options = len(item.options)
        if not (_chose(theirs, options) and _chose(ours, options)) or ours.chosen == theirs.chosen:
            continue
        flipped += 1
        if options > 2 and _chose(bases, options) and bases.chosen != theirs.chosen:
            informative += 1
            to_base += ours.chosen == bases.chosen
            chances.append(1 / (options - 1))
    if not chances:
        return Drift(flipped, 0, 0, 0.0, None)
    return Drift(flipped, informative, to_base, sum(chances) / len(chances), _at_least(to_base, chances))


def _at_least(successes: int, chances: Sequence[float]) -> float:
    # A sum of a few binomials: scipy's poisson_binom takes a Fourier transform, which cannot tell a tail below 1e-16.
    distribution = np.ones(1)
    for chance, count in Counter(chances).items():
        distribution = np.convolve(distribution, binom.pmf(np.arange(count + 1), count, chance))
    return min(1.0, float(distribution[successes:].sum()))


def _chose(outcome: Outcome, options: int) -> bool:
    return outcome.chosen is not None and 0 <= outcome.chosen < options


def letters(items: Sequence[Item], outcomes: Sequence[Outcome]) -> Letters:
    """Count the letters of one protocol's answers; a response that is incoherent is one that could not be read."""
    pairs = [(item.answer, outcome.chosen) for item, outcome in zip(items, outcomes, strict=True)]
    right = Counter(LETTERS[answer] for answer, _ in pairs if answer is not None)
    chosen = Counter(LETTERS[choice] for _, choice in pairs if choice is not None)
    hits = Counter(LETTERS[answer] for answer, choice in pairs if answer is not None and answer == choice)
    failures = Counter(outcome.failure for outcome in outcomes)
    return Letters(
        right=dict(sorted(right.items())),
        chosen=dict(sorted(chosen.items())),
        recall={letter: hits[letter] / count for letter, count in sorted(right.items())},
        unparsed=failures["unparsed"] + failures["incoherent"],
        refused=failures["refused"],
    )


def gap(aligned: Goods, base: Goods, model: Goods) -> Gap:
    """Return the gap retained, (quantized − base) / (aligned − base), on the items that all three arms have."""
    all_three = (aligned >= 0) & (base >= 0) & (model >= 0)
    origin = base[all_three].astype(np.float64)
    if len(origin) < 2:
        return Gap(None, None, f"{len(origin)} items were measured of all three; an interval needs two")
    added, left = aligned[all_three] - origin, model[all_three] - origin
    ratio = fieller(left, added)
    if ratio.value is None:
        differ = f"the aligned model and its base differ by {100 * float(added.mean()):.1f} points"
        return Gap(None, None, f"{differ} on {len(origin)} items, which is not distinguishable from 0")
    return Gap(ratio.value, ratio.interval)
