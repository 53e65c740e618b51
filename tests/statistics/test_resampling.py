"""Intervals and tests against known values and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap
from statsmodels.stats.contingency_tables import mcnemar as known_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from caq.statistics.resampling import Interval, across_seeds, holm, mcnemar, paired_bootstrap, wilson


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [(0, 0, 1.0), (5, 5, 1.0), (0, 5, 2 / 2**5), (1, 9, 2 * (1 + 10) / 2**10), (0, 10, 2 / 2**10)],
)
def test_mcnemar_has_its_known_values(gained: int, lost: int, p: float) -> None:
    assert mcnemar(gained, lost) == pytest.approx(p)


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_twice_the_smaller_binomial_tail(gained: int, lost: int) -> None:
    pairs = gained + lost
    tail = sum(math.comb(pairs, k) for k in range(min(gained, lost) + 1)) / 2**pairs
    assert mcnemar(gained, lost) == pytest.approx(min(1.0, 2 * tail))


@pytest.mark.parametrize(("gained", "lost"), [(0, 3), (6, 16), (25, 28), (120, 90)])
def test_mcnemar_agrees_with_statsmodels(gained: int, lost: int) -> None:
    assert mcnemar(gained, lost) == pytest.approx(known_mcnemar([[50, gained], [lost, 70]], exact=True).pvalue)


@pytest.mark.parametrize(("good", "items"), [(0, 313), (313, 313), (7, 30), (8204, 11435), (1, 1)])
def test_wilsons_interval_agrees_with_statsmodels(good: int, items: int) -> None:
    found = wilson(good, items)
    assert (found.low, found.high) == pytest.approx(proportion_confint(good, items, method="wilson"), abs=1e-12)


@pytest.mark.parametrize("values", [[0.04], [0.01, 0.04, 0.03, 0.005], [0.5, 0.5, 0.9], [0.0, 1.0, 1e-9, 0.02, 0.02]])
def test_holms_p_values_agree_with_statsmodels(values: list[float]) -> None:
    assert holm(values) == pytest.approx(tuple(multipletests(values, method="holm")[1]))


def test_holm_has_its_known_values_and_none_for_no_rows() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([]) == ()


def outcomes(rate: float, size: int, seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return (np.random.default_rng(seed).random(size) < rate).astype(np.float64)


def test_the_bootstrap_agrees_with_scipys() -> None:
    ours, theirs = outcomes(0.7, 400, 0), outcomes(0.6, 400, 1)
    known = bootstrap((ours - theirs,), np.mean, method="percentile", n_resamples=10_000, rng=np.random.default_rng(2))
    found = paired_bootstrap(ours, theirs)
    assert found.mean == pytest.approx((ours - theirs).mean())
    assert found.interval.low == pytest.approx(known.confidence_interval.low, abs=0.005)
    assert found.interval.high == pytest.approx(known.confidence_interval.high, abs=0.005)


def test_the_bootstrap_takes_outcomes_that_are_averages_over_seeds() -> None:
    generator = np.random.default_rng(0)
    ours, theirs = generator.random(300), generator.random(300)
    known = bootstrap((ours - theirs,), np.mean, method="percentile", n_resamples=10_000, rng=generator)
    found = paired_bootstrap(ours, theirs).interval
    assert (found.low, found.high) == pytest.approx(tuple(known.confidence_interval), abs=0.01)


def test_the_bootstraps_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    held = 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        found = paired_bootstrap(generator.random(150) < 0.7, generator.random(150) < 0.6, resamples=500, seed=seed)
        held += found.interval.low <= 0.1 <= found.interval.high
    assert 0.90 <= held / 200 <= 0.99


def test_pairing_shortens_the_interval_of_items_that_move_together() -> None:
    theirs = outcomes(0.6, 500, 0)
    ours = np.where(np.arange(500) < 10, 1 - theirs, theirs)
    paired = paired_bootstrap(ours, theirs).interval
    unpaired = paired_bootstrap(ours, np.random.default_rng(1).permutation(theirs)).interval
    assert paired.high - paired.low < (unpaired.high - unpaired.low) / 3


def test_the_same_seed_gives_the_same_interval_and_equal_items_an_empty_one() -> None:
    ours, theirs = outcomes(0.7, 100, 0), outcomes(0.6, 100, 1)
    assert paired_bootstrap(ours, theirs, seed=3) == paired_bootstrap(ours, theirs, seed=3)
    assert paired_bootstrap(ours, theirs, seed=3) != paired_bootstrap(ours, theirs, seed=4)
    assert paired_bootstrap(ours, ours).interval == Interval(0.0, 0.0)


@pytest.mark.parametrize(("ours", "theirs"), [([], []), ([1.0, 0.0], [1.0])])
def test_items_without_a_partner_are_refused(ours: list[float], theirs: list[float]) -> None:
    with pytest.raises(ValueError, match=r"paired items|broadcast"):
        paired_bootstrap(ours, theirs)


def test_runs_are_summarised_by_a_t_interval() -> None:
    found = across_seeds([1.0, 2.0, 3.0])
    assert (found.runs, found.mean, found.deviation) == pytest.approx((3, 2.0, 1.0))
    assert found.interval is not None
    # t(0.975, 2) = 4.3027 over sqrt(3).
    assert (found.interval.low, found.interval.high) == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-4)


def test_one_run_has_no_spread_and_none_is_refused() -> None:
    found = across_seeds([0.25])
    assert (found.mean, found.deviation, found.interval) == (0.25, None, None)
    with pytest.raises(ValueError, match="at least one"):
        across_seeds([])
