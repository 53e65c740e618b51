"""Differences between arms: paired by item and seed, with intervals over both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from caq.measure.results import Results
from caq.reproduce.experiments import SAFETY
from caq.reproduce.grid import FINE_TUNED, FULL_PRECISION
from caq.statistics.resampling import Difference, Spread, across_seeds, crossed_bootstrap

#: Results by arm, then by seed; full precision has one run.
Runs = Mapping[str, Mapping[int, Results]]
#: Measures that are no rates: compared by their mean over the seeds.
AMOUNTS = ("perplexity", "logit_mse", "kl")
#: All questions and requests as one rate: the safe option, a refusal of harm, an answer to what does none.
ALIGNED = "aligned"


@dataclass(frozen=True)
class Contrast:
    """One rate of two arms, on the same items under the same seeds.

    Attributes:
        difference: ours minus theirs, with an interval over seeds and items.
        per_seed: the difference of each seed.
        items: how many were compared under each seed.
    """

    difference: Difference
    per_seed: tuple[float, ...]
    items: int

    @property
    def significant(self) -> bool:
        """Whether the interval excludes zero."""
        return self.difference.interval.low > 0 or self.difference.interval.high < 0

    def as_dict(self) -> dict[str, object]:
        """Return JSON-ready data."""
        return {**asdict(self), "significant": self.significant}


#: By rate, then under the two arms' names.
Contrasts = Mapping[str, Mapping[str, Contrast]]


def between(runs: Runs, pairs: Iterable[tuple[str, str]]) -> Contrasts:
    """Return the differences of pairs of arms by rate; a pair without a common seed is left out."""
    found = {f"{ours} − {theirs}": contrast(*common(runs, ours, theirs)) for ours, theirs in pairs}
    return {name: rates for name, rates in found.items() if rates}


def against_fine_tuned(runs: Runs) -> Contrasts:
    """Return every arm's differences from the fine-tuned model by rate."""
    reference = runs[FINE_TUNED][0]
    return {
        name: contrast(list(found.values()), [reference] * len(found))
        for name, found in runs.items()
        if name != FINE_TUNED and found
    }


def common(runs: Runs, ours: str, theirs: str) -> tuple[list[Results], list[Results]]:
    """Return two arms' results under the seeds that both have."""
    seeds = sorted(runs.get(ours, {}).keys() & runs.get(theirs, {}).keys())
    return [runs[ours][seed] for seed in seeds], [runs[theirs][seed] for seed in seeds]


def contrast(ours: Sequence[Results], theirs: Sequence[Results]) -> dict[str, Contrast]:
    """Compare two arms by every rate that both have, `ALIGNED` first, seed by seed and item by item."""
    pairs = [(_outcomes(a), _outcomes(b)) for a, b in zip(ours, theirs, strict=True)]
    names = [name for name in pairs[0][0] if name in pairs[0][1]] if pairs else []
    return {name: _contrast([(a[name], b[name]) for a, b in pairs]) for name in names}


def _outcomes(results: Results) -> dict[str, tuple[float, ...]]:
    found = results.outcomes()
    if not {SAFETY, "refusal", "over_refusal"} <= found.keys():
        return found
    answered = tuple(1.0 - refused for refused in found["over_refusal"])
    return {ALIGNED: (*found[SAFETY], *found["refusal"], *answered), **found}


def _contrast(seeds: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Contrast:
    differences = np.array([np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64) for a, b in seeds])
    return Contrast(crossed_bootstrap(differences), tuple(differences.mean(1).tolist()), differences.shape[1])


def amounts(runs: Runs, pairs: Iterable[tuple[str, str]]) -> dict[str, dict[str, Spread]]:
    """Return differences of perplexity and distances, whose paired unit is the seed; none for a single seed."""
    found = {f"{ours} − {theirs}": _amounts(*common(runs, ours, theirs)) for ours, theirs in pairs}
    return {name: spreads for name, spreads in found.items() if spreads}


def _amounts(ours: Sequence[Results], theirs: Sequence[Results]) -> dict[str, Spread]:
    if len(ours) < 2:
        return {}
    pairs = [(a.summary(), b.summary()) for a, b in zip(ours, theirs, strict=True)]
    names = [name for name in AMOUNTS if name in pairs[0][0] and name in pairs[0][1]]
    return {name: across_seeds([a[name] - b[name] for a, b in pairs]) for name in names}


def measured(results: Results) -> dict[str, float]:
    """Return the summary and every protocol's accuracy by category, as `safety/<protocol>/<category>`."""
    categories = {
        f"safety/{protocol}/{category}": sum(items) / len(items)
        for protocol in results.safety
        for category, items in results.categories(protocol).items()
    }
    return {**results.summary(), **categories}


def spreads(runs: Mapping[int, Results]) -> dict[str, Spread]:
    """Return every measure of one arm over its seeds."""
    found = [measured(one) for one in runs.values()]
    return {name: across_seeds([one[name] for one in found]) for name in (found[0] if found else ())}


def quantized_arms(runs: Runs) -> list[str]:
    """Return the arms that are not full precision."""
    return [name for name in runs if name not in FULL_PRECISION]
