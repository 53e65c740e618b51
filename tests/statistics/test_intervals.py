"""Tango's and Fieller's intervals against published values, closed forms and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, ttest_1samp

from caq.statistics.intervals import fieller, tango, upper_bound

Z = 1.959963984540054


@pytest.mark.parametrize(
    ("gained", "lost", "items", "low", "high"),
    [
        # Fagerland, Lydersen, Laake, Statistical Analysis of Contingency Tables, ch. 8: Cavo 2012 and Bentur 2009.
        (6, 16, 161, -0.1240, -0.0054),
        (1, 7, 21, -0.5172, -0.0260),
    ],
)
def test_tangos_interval_has_its_published_values(gained: int, lost: int, items: int, low: float, high: float) -> None:
    found = tango(gained, lost, items)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("items", [1, 30, 313, 11_435])
def test_without_flips_tangos_interval_is_its_closed_form(items: int) -> None:
    half = Z**2 / (items + Z**2)
    found = tango(0, 0, items)
    assert (found.low, found.high) == pytest.approx((-half, half))


@pytest.mark.parametrize(("flips", "inner"), [(12, 0.5150), (3, -0.1230), (1, -0.5869), (500, 0.9848)])
def test_where_every_item_flipped_tangos_interval_has_a_width(flips: int, inner: float) -> None:
    up, down = tango(flips, 0, flips), tango(0, flips, flips)
    assert (up.low, up.high) == pytest.approx((inner, 1.0), abs=5e-5)
    assert (down.low, down.high) == pytest.approx((-1.0, -inner), abs=5e-5)
    assert score(flips, 0, flips, up.low) == pytest.approx(Z, abs=1e-3)


def test_one_flip_moves_tangos_interval_a_little_only() -> None:
    none, one = tango(0, 0, 1000), tango(0, 1, 1000)
    assert -0.007 < one.low < none.low
    assert one.high < none.high


def score(gained: int, lost: int, items: int, delta: float) -> float:
    """Maximise the likelihood under the difference on a grid; nothing of the closed form is used."""
    q = np.linspace(max(0.0, -delta), (1 - delta) / 2, 400_001)[1:-1]
    logs = gained * np.log(q + delta) + lost * np.log(q) + (items - gained - lost) * np.log1p(-2 * q - delta)
    best = q[np.argmax(logs)]
    return float((gained - lost - items * delta) / math.sqrt(items * (2 * best + delta * (1 - delta))))


@pytest.mark.parametrize(("gained", "lost", "items"), [(6, 16, 161), (3, 1, 40), (40, 20, 160)])
def test_the_ends_of_tangos_interval_are_where_the_score_test_turns(gained: int, lost: int, items: int) -> None:
    found = tango(gained, lost, items)
    assert score(gained, lost, items, found.low) == pytest.approx(Z, abs=1e-3)
    assert score(gained, lost, items, found.high) == pytest.approx(-Z, abs=1e-3)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 500))
def test_tangos_interval_holds_the_difference_and_turns_with_the_models(gained: int, lost: int, same: int) -> None:
    items = max(1, gained + lost + same)
    found, turned = tango(gained, lost, items), tango(lost, gained, items)
    assert -1 <= found.low <= (gained - lost) / items <= found.high <= 1
    assert found.high - found.low > 1 / items
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low), abs=1e-9)


@pytest.mark.parametrize(("items", "gain", "loss"), [(60, 0.03, 0.08), (400, 0.05, 0.05), (400, 0.002, 0.01)])
def test_tangos_interval_holds_the_truth_about_as_often_as_it_says(items: int, gain: float, loss: float) -> None:
    draws = np.random.default_rng(0).multinomial(items, [gain, loss, 1 - gain - loss], size=1000).tolist()
    held = [(found := tango(up, down, items)).low <= gain - loss <= found.high for up, down, _ in draws]
    assert 0.93 <= np.mean(held) <= 0.99


def test_no_event_in_313_bounds_the_rate_below_1_2_percent() -> None:
    assert upper_bound(0, 313) == pytest.approx(1 - 0.025 ** (1 / 313))
    assert 0.011 < upper_bound(0, 313) < 0.012


@pytest.mark.parametrize(("events", "items"), [(1, 30), (29, 30), (30, 30), (412, 11_435)])
def test_the_bound_of_a_rate_agrees_with_scipys(events: int, items: int) -> None:
    assert upper_bound(events, items) == pytest.approx(binomtest(events, items).proportion_ci(0.95).high)


def pairs(size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    denominators = generator.choice([-1.0, 0.0, 1.0], size, p=[0.05, 0.6, 0.35])
    numerators = np.where(generator.random(size) < 0.8, denominators, generator.choice([-1.0, 0.0, 1.0], size))
    return numerators, denominators


def test_fiellers_interval_agrees_with_a_bootstrap_of_the_ratio() -> None:
    numerators, denominators = pairs(600)
    drawn = np.random.default_rng(1).integers(0, 600, (10_000, 600))
    ratios = numerators[drawn].mean(1) / denominators[drawn].mean(1)
    found = fieller(numerators, denominators)
    assert found.value == pytest.approx(numerators.mean() / denominators.mean())
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == pytest.approx(
        tuple(np.quantile(ratios, [0.025, 0.975])), abs=0.02
    )


def test_fiellers_interval_is_where_the_t_test_of_the_combined_mean_turns() -> None:
    numerators, denominators = pairs(80)
    found = fieller(numerators, denominators)
    assert found.interval is not None
    for end in (found.interval.low, found.interval.high):
        assert ttest_1samp(numerators - end * denominators, 0).pvalue == pytest.approx(0.05, abs=1e-6)


def test_the_whole_of_the_denominator_is_exactly_one_and_nothing_of_it_exactly_zero() -> None:
    _, denominators = pairs(300)
    whole, nothing = fieller(denominators, denominators), fieller(np.zeros(300), denominators)
    assert whole.interval is not None
    assert nothing.interval is not None
    assert (whole.value, whole.interval.low, whole.interval.high) == (1.0, 1.0, 1.0)
    assert (nothing.value, nothing.interval.low, nothing.interval.high) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("denominators", [np.zeros(50), np.tile([1.0, -1.0], 25), np.eye(1, 50)[0]])
def test_a_denominator_that_may_be_zero_leaves_the_ratio_undefined(denominators: np.ndarray) -> None:
    found = fieller(np.ones(50), denominators)
    assert found.value is None
    assert found.interval is None
