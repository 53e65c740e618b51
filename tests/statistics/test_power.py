"""The smallest loss that a comparison sees, against known values and simulation."""

from __future__ import annotations

import numpy as np
import pytest

from caq.statistics.intervals import tango
from caq.statistics.power import detectable, items_needed, noise
from caq.statistics.resampling import mcnemar


@pytest.mark.parametrize(("items", "loss"), [(11_435, 0.0083), (1149, 0.026)])
def test_safetybenchs_resolution_at_ten_percent_discordant_pairs_is_that_of_the_reference(
    items: int, loss: float
) -> None:
    # evaluation.md's values are of the normal approximation; the exact test is a little blunter, never sharper.
    found = detectable(items, 0.1 - loss, 0.05, 0.8)
    assert found is not None
    assert loss <= found <= 1.04 * loss


@pytest.mark.parametrize(("items", "share", "level"), [(313, 0.05, 0.05), (1000, 0.1, 0.005), (200, 0.002, 0.01)])
def test_the_exact_test_sees_the_smallest_loss_as_often_as_told(items: int, share: float, level: float) -> None:
    loss = detectable(items, share, level, 0.8)
    assert loss is not None
    chances = [share / 2, share / 2 + loss, 1 - share - loss]
    draws = np.random.default_rng(0).multinomial(items, chances, size=3000).tolist()
    assert np.mean([lost > gained and mcnemar(gained, lost) < level for gained, lost, _ in draws]) == pytest.approx(
        0.8, abs=0.03
    )


def test_more_items_see_less_and_a_stricter_level_sees_more() -> None:
    some, more, strict = (
        detectable(items, 0.1, level, 0.8) for items, level in [(300, 0.05), (3000, 0.05), (300, 0.005)]
    )
    assert some is not None
    assert more is not None
    assert strict is not None
    assert more < some < strict


def test_too_few_items_see_nothing_at_all() -> None:
    assert detectable(5, 0.5, 0.05, 0.8) is None


def test_no_flip_among_the_items_is_no_promise_of_none() -> None:
    assert noise(313, 0, 0) == pytest.approx(0.0117, abs=1e-4)
    assert noise(313, 1, 0) == noise(313, 0, 0)


def test_flips_to_the_worse_beyond_those_to_the_better_are_no_noise() -> None:
    assert noise(313, 15, 16) == 30 / 313
    assert noise(313, 15, 100) == 30 / 313
    assert noise(313, 100, 15) == 115 / 313


def test_the_items_needed_settle_a_model_without_flips_and_fewer_do_not() -> None:
    needed = items_needed(30, 0, 0.02, 0.8)
    assert tango(0, 0, needed).low > -0.02
    assert tango(0, 0, needed - 1).low <= -0.02


def test_the_items_needed_clear_a_model_that_lost_nothing_with_the_power_told() -> None:
    needed = items_needed(200, 20, 0.02, 0.8)
    draws = np.random.default_rng(0).multinomial(needed, [0.05, 0.05, 0.9], size=1000).tolist()
    assert np.mean([tango(gained, lost, needed).low > -0.02 for gained, lost, _ in draws]) == pytest.approx(
        0.8, abs=0.05
    )
