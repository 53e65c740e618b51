"""Differences between arms: paired by item and seed, with intervals over both."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from caq.measure.record import HELPFULNESS, REFUSAL, ArmRecord, Item
from caq.report.experiment import Contrast, Contrasts, Shift
from caq.report.flips import gap
from caq.report.measures import category_rates, item_scores, numbers, safety_measures
from caq.report.pairing import Goods, deciding, goods
from caq.reproduce.experiments import SAFETY
from caq.reproduce.grid import ALIGNED, BASE, FULL_PRECISION
from caq.statistics.resampling import Spread, across_seeds, crossed_bootstrap, holm, student

T = TypeVar("T")

#: Records by arm, then by seed; full precision has one run.
Runs = Mapping[str, Mapping[int, ArmRecord]]
#: Measures that are no rates: compared by their mean over the seeds.
AMOUNTS = ("perplexity", "logit_mse", "kl", "kl_chat")
#: All questions and requests as one rate: the safe option, a refusal of harm, an answer to what does none.
ALIGNMENT = "alignment"


def between(runs: Runs, pairs: Iterable[tuple[str, str]], once: Collection[str] = ()) -> Contrasts:
    """Return the differences of pairs of arms by rate; a pair without a common seed is left out.

    `once` are the arms that run under one seed alone: every run of another is compared with it.
    """
    contrasts = {f"{ours} − {theirs}": contrast(*common(runs, ours, theirs, once)) for ours, theirs in pairs}
    return _adjusted({name: rates for name, rates in contrasts.items() if rates})


def against_aligned(runs: Runs) -> Contrasts:
    """Return every arm's differences from the aligned model by rate."""
    reference = runs[ALIGNED][0]
    contrasts = {
        name: contrast(list(records.values()), [reference] * len(records))
        for name, records in runs.items()
        if name != ALIGNED and records
    }
    return _adjusted(contrasts)


def _adjusted(contrasts: Contrasts) -> Contrasts:
    """Return contrasts with Holm's p values over all of them."""
    adjusted = iter(holm([one.p_holm for rates in contrasts.values() for one in rates.values()]))
    return {
        arms: {name: replace(one, p_holm=next(adjusted)) for name, one in rates.items()}
        for arms, rates in contrasts.items()
    }


def common(runs: Runs, ours: str, theirs: str, once: Collection[str] = ()) -> tuple[list[ArmRecord], list[ArmRecord]]:
    """Return two arms' records under the seeds that both have; see `between` for `once`."""
    found = {name: runs.get(name, {}) for name in (ours, theirs)}
    for single, other in ((ours, theirs), (theirs, ours)):
        if single in once and other not in once:
            found[single] = {seed: record for seed in found[other] for record in found[single].values()}
    seeds = sorted(found[ours].keys() & found[theirs].keys())
    return [found[ours][seed] for seed in seeds], [found[theirs][seed] for seed in seeds]


def contrast(ours: Sequence[ArmRecord], theirs: Sequence[ArmRecord]) -> dict[str, Contrast]:
    """Compare two arms by every rate, seed by seed and item by item, under the seeds under which both have it.

    Their p values are those of one comparison among none.
    """
    pairs = _by_measure([(_scores(a), _scores(b)) for a, b in zip(ours, theirs, strict=True)])
    return {name: _contrast(seeds) for name, seeds in pairs.items()}


def _by_measure(pairs: Sequence[tuple[Mapping[str, T], Mapping[str, T]]]) -> dict[str, list[tuple[T, T]]]:
    """Return the values of two arms by measure, of those seeds under which both have it."""
    found: dict[str, list[tuple[T, T]]] = {}
    for ours, theirs in pairs:
        for name in ours:
            if name in theirs:
                found.setdefault(name, []).append((ours[name], theirs[name]))
    return found


def _scores(arm: ArmRecord) -> dict[str, tuple[float, ...]]:
    scores = item_scores(arm)
    if not {SAFETY, REFUSAL, HELPFULNESS} <= scores.keys():
        return scores
    return {ALIGNMENT: (*scores[SAFETY], *scores[REFUSAL], *scores[HELPFULNESS]), **scores}


def _contrast(seeds: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Contrast:
    differences = np.array([np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64) for a, b in seeds])
    difference = crossed_bootstrap(differences)
    return Contrast(difference, tuple(differences.mean(1).tolist()), differences.shape[1], difference.p)


def amounts(runs: Runs, pairs: Iterable[tuple[str, str]], once: Collection[str] = ()) -> dict[str, dict[str, Shift]]:
    """Return differences of perplexity and distances, whose paired unit is the seed; none of a single seed.

    See `between` for `once`.
    """
    differences = {f"{ours} − {theirs}": _amounts(*common(runs, ours, theirs, once)) for ours, theirs in pairs}
    adjusted = iter(holm([student(values) for measures in differences.values() for values in measures.values()]))
    return {
        arms: {name: Shift(across_seeds(values), next(adjusted)) for name, values in measures.items()}
        for arms, measures in differences.items()
        if measures
    }


def _amounts(ours: Sequence[ArmRecord], theirs: Sequence[ArmRecord]) -> dict[str, list[float]]:
    pairs = _by_measure([(numbers(a), numbers(b)) for a, b in zip(ours, theirs, strict=True)])
    return {name: [a - b for a, b in pairs[name]] for name in AMOUNTS if len(pairs.get(name, ())) > 1}


def spreads(runs: Mapping[int, ArmRecord], items: Mapping[str, Sequence[Item]]) -> dict[str, Spread]:
    """Return every measure of one arm over its seeds, and every safety measure by category (`MEASURE/CATEGORY`)."""
    measured = [_with_categories(arm, items) for arm in runs.values()]
    names = dict.fromkeys(name for run in measured for name in run)
    return {name: across_seeds([run[name] for run in measured if name in run]) for name in names}


def gaps(runs: Mapping[int, ArmRecord]) -> dict[int, list[str]]:
    """Return by seed the measures of one arm that only its other seeds have."""
    measured = {seed: dict.fromkeys([*numbers(arm), *_scores(arm)]) for seed, arm in runs.items()}
    names = dict.fromkeys(name for run in measured.values() for name in run)
    missing = {seed: [name for name in names if name not in run] for seed, run in measured.items()}
    return {seed: lacking for seed, lacking in missing.items() if lacking}


def retained(runs: Runs) -> dict[str, dict[str, Spread]]:
    """Return by arm and measure the share of the gap between base and aligned model that is retained, over the seeds.

    Measures on which the two cannot be told apart are left out.
    """
    aligned, base = (_goods(runs[name][0]) if runs.get(name) else {} for name in (ALIGNED, BASE))
    shares: dict[str, dict[str, Spread]] = {}
    for arm in quantized_arms(runs):
        seeds = [_goods(record) for record in runs[arm].values()]
        for measure in aligned.keys() & base.keys():
            ratios = [gap(aligned[measure], base[measure], one[measure]).value for one in seeds if measure in one]
            values = [value for value in ratios if value is not None]
            if values:
                shares.setdefault(arm, {})[measure] = across_seeds(values)
    return {arm: dict(sorted(found.items())) for arm, found in shares.items()}


def _goods(arm: ArmRecord) -> dict[str, Goods]:
    """Return the outcomes of every measure that decides."""
    return {name: goods(outcomes) for name, outcomes in arm.outcomes.items() if deciding(name)}


def _with_categories(arm: ArmRecord, items: Mapping[str, Sequence[Item]]) -> dict[str, float]:
    categories = {
        f"{measure}/{category}": rate
        for measure in safety_measures(arm)
        for category, rate in category_rates(arm, items, measure).items()
    }
    return {**numbers(arm), **categories}


def quantized_arms(runs: Runs) -> list[str]:
    """Return the arms that are not full precision."""
    return [name for name in runs if name not in FULL_PRECISION]
