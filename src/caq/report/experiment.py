"""What a table of the paper's holds over seeds: spreads, differences between arms, and the printed figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from caq.statistics.resampling import CONFIDENCE, Difference, Spread


@dataclass(frozen=True)
class Contrast:
    """One rate of two arms, on the same items under the same seeds.

    Attributes:
        difference: ours minus theirs, with an interval over seeds and items.
        per_seed: the difference of each seed.
        items: how many were compared under each seed.
        p_holm: p after Holm, over all rates of all pairs of arms that it was compared with.
    """

    difference: Difference
    per_seed: tuple[float, ...]
    items: int
    p_holm: float

    @property
    def significant(self) -> bool:
        """Whether there is evidence of a difference."""
        return self.p_holm < 1 - CONFIDENCE


#: By the names of the two arms, then by rate.
Contrasts = Mapping[str, Mapping[str, Contrast]]


@dataclass(frozen=True)
class Shift:
    """One perplexity or distance of two arms under the same seeds.

    Attributes:
        difference: ours minus theirs, over the seeds.
        p_holm: Student's p after Holm, over all such measures of all pairs of arms.
    """

    difference: Spread
    p_holm: float


@dataclass(frozen=True)
class PrintedFigure:
    """One printed figure beside ours, both in the paper's units.

    Attributes:
        ours: the mean over seeds; None if no run of the arm ended.
        note: why the two do not compare; empty where they do.
    """

    printed: float
    ours: float | None
    note: str

    @property
    def difference(self) -> float | None:
        """Ours minus the printed one; None where the two do not compare."""
        return None if self.note or self.ours is None else self.ours - self.printed


@dataclass(frozen=True)
class ExperimentTable:
    """A table over seeds.

    Attributes:
        pair, preset, command, seeds: on what it was run, from which settings, and what runs it again.
        recipes: fingerprints by arm, one a seed.
        spreads: every measure over the seeds, by arm.
        against_aligned: every arm's differences from the aligned model.
        contrasts: differences between arms.
        amounts: differences of perplexity and distances between arms, over seeds.
        gaps: by arm and measure, the share of the gap between aligned model and base that is retained, over the seeds.
        paper: the printed figures, by arm and the paper's name of the measure.
        diverged: why learning failed, by arm and seed.
    """

    name: str
    pair: str
    preset: str
    command: str
    seeds: tuple[int, ...]
    recipes: Mapping[str, tuple[str, ...]]
    spreads: Mapping[str, Mapping[str, Spread]]
    against_aligned: Contrasts
    contrasts: Contrasts
    amounts: Mapping[str, Mapping[str, Shift]]
    gaps: Mapping[str, Mapping[str, Spread]]
    paper: Mapping[str, Mapping[str, PrintedFigure]]
    diverged: Mapping[str, Mapping[str, str]]
