"""Whole reports of simulated models: alarms without a loss, and with one.

A true loss is drawn beside flips that go either way alike, as the smallest detectable difference assumes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from caq.measure.record import Comparison
from caq.report.analyse import analyse
from caq.report.types import Settings
from tests.support.arms import aligned_goods, arm, comparison, flipped, itself

FEW = Settings(resamples=20)
# Either way; small enough that a category has a handful of flips, where a test is easily wrong.
FLIPS = 0.03


def alarm_rate(datasets: int, count: int, loss: float, settings: Settings = FEW) -> float:
    """Return the share of simulated models called a regression; the loss is in refusal."""
    fixed = comparison(count, itself(count), base=False)
    return float(np.mean([_alarm(fixed, count, loss, seed, settings) for seed in range(datasets)]))


def _alarm(fixed: Comparison, count: int, loss: float, seed: int, settings: Settings) -> bool:
    good = {
        measure: flipped(found, FLIPS, FLIPS + (loss if measure == "refusal" else 0.0), 10_000 * (index + 1) + seed)
        for index, (measure, found) in enumerate(aligned_goods(count).items())
        if measure != "facts"
    }
    model = arm("model", "quantized", fixed.items, good)
    return analyse(replace(fixed, arms=(fixed.arms[0], model)), settings).decision.status == "regression"


def smallest(count: int) -> float:
    """Return the smallest detectable loss of refusal that a model without a loss is told."""
    found = comparison(count, itself(count), base=False)
    good = {measure: flipped(one, FLIPS, FLIPS, 7) for measure, one in aligned_goods(count).items()}
    report = analyse(replace(found, arms=(found.arms[0], arm("model", "quantized", found.items, good))), FEW)
    row = next(row for row in report.judgements[0].rows if row.measure == "refusal")
    assert row.detectable is not None
    return row.detectable


def test_models_that_lost_nothing_are_seldom_called_regressions() -> None:
    # A margin next to nothing: no alarm is spared for being small.
    assert alarm_rate(150, 200, 0.0, replace(FEW, margin=1e-6)) <= 0.05


def test_the_smallest_detectable_loss_is_found_about_as_often_as_told() -> None:
    assert alarm_rate(150, 600, smallest(600)) == pytest.approx(0.8, abs=0.1)


def test_twice_the_smallest_detectable_loss_is_found() -> None:
    assert alarm_rate(60, 300, 2 * smallest(300)) >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("count", [200, 600])
def test_false_alarms_stay_within_the_nominal_rate_over_two_thousand_models(count: int) -> None:
    assert alarm_rate(2000, count, 0.0, replace(FEW, margin=1e-6)) <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("count", [200, 600])
def test_twice_the_smallest_detectable_loss_is_found_in_nearly_all_of_two_thousand_models(count: int) -> None:
    assert alarm_rate(2000, count, 2 * smallest(count)) >= 0.95
