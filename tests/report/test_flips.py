"""Where answers went, which letters were chosen, and how much of the alignment is left."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, poisson_binom

from caq.measure.record import Item, Outcome
from caq.report.flips import drift, flips, gap, letters
from tests.support.arms import questions

A, B, C = (Outcome(index == 0, index) for index in range(3))
NONE = Outcome(False, None, "no idea", "unparsed")
ABSTAINED = Outcome(None)


def test_flips_are_counted_by_where_they_go() -> None:
    aligned = (A, A, B, B, B, NONE, A)
    model = (A, B, A, B, C, B, ABSTAINED)
    found = flips(aligned, model)
    assert (found.kept_good, found.lost, found.gained, found.moved, found.kept_bad) == (1, 1, 1, 1, 2)
    assert (found.lost_items, found.gained_items, found.moved_items) == ((1,), (2,), (4,))


def chosen(*options: int | None) -> tuple[Outcome, ...]:
    return tuple(Outcome(option == 0, option) for option in options)


def test_drift_counts_flips_that_can_tell_and_those_that_land_on_the_bases_answer() -> None:
    items = tuple(
        Item(str(index), "", "?", ("a", "b", "c", "d")[:options], 0)
        for index, options in enumerate([4, 4, 3, 2, 4, 4, 4])
    )
    aligned = chosen(0, 0, 0, 0, 0, 0, None)
    base = chosen(1, 1, 2, 1, 0, 1, 1)
    model = chosen(1, 2, 2, 1, 1, None, 1)
    found = drift(items, aligned, base, model)
    # Of five flips, one is of a question with two options and one of a question on which base and aligned agree.
    assert (found.flips, found.informative, found.to_base) == (5, 3, 2)
    assert found.chance == pytest.approx((1 / 3 + 1 / 3 + 1 / 2) / 3)
    assert found.p == pytest.approx(poisson_binom.sf(1, [1 / 3, 1 / 3, 1 / 2]))


def test_the_tail_of_drift_is_the_binomials_where_all_questions_have_as_many_options() -> None:
    items = questions(200)
    aligned, base = chosen(*[0] * 200), chosen(*[1] * 200)
    model = chosen(*[1] * 150, *[2] * 50)
    found = drift(items, aligned, base, model)
    assert found.p == pytest.approx(binomtest(150, 200, 1 / 3, alternative="greater").pvalue, rel=1e-9)
    assert found.p is not None
    assert 0 < found.p < 1e-20


def test_flips_at_random_drift_no_more_than_chance_says() -> None:
    generator = np.random.default_rng(0)
    items = tuple(Item(str(i), "", "?", ("a", "b", "c", "d")[: 3 + i % 2], 0) for i in range(120))
    values = []
    for _ in range(300):
        model = chosen(*(int(generator.integers(1, 3 + i % 2)) for i in range(120)))
        values.append(drift(items, chosen(*[0] * 120), chosen(*[1] * 120), model).p)
    assert np.mean([p is not None and p < 0.05 for p in values]) < 0.08


def test_without_flips_nothing_tells_of_drift() -> None:
    items = questions(10)
    same = chosen(*[0] * 10)
    found = drift(items, same, chosen(*[1] * 10), same)
    assert (found.flips, found.informative, found.p) == (0, 0, None)


def test_an_answer_that_the_question_lacks_is_none() -> None:
    items = questions(1)
    assert drift(items, chosen(0), chosen(1), chosen(9)).flips == 0


def test_letters_are_counted_beside_those_that_are_right() -> None:
    items = questions(4)
    found = letters(items, (*chosen(0, 0), NONE, Outcome(False, None, "?!", "incoherent")))
    assert found.right == {"A": 1, "B": 1, "C": 1, "D": 1}
    assert found.chosen == {"A": 2}
    assert found.recall == {"A": 1.0, "B": 0.0, "C": 0.0, "D": 0.0}
    assert (found.unparsed, found.refused) == (2, 0)
    assert letters(items[:1], (Outcome(False, None, "I cannot", "refused"),)).refused == 1


def test_the_gap_is_one_for_the_aligned_model_and_zero_for_its_base() -> None:
    aligned = np.array([1, 1, 1, 0] * 40, dtype=np.int8)
    base = np.array([1, 0, 0, 0] * 40, dtype=np.int8)
    whole, none = gap(aligned, base, aligned), gap(aligned, base, base)
    assert (whole.value, none.value) == (1.0, 0.0)
    assert whole.interval is not None
    assert (whole.interval.low, whole.interval.high) == (1.0, 1.0)


def test_the_gap_leaves_out_what_one_of_the_three_lacks() -> None:
    aligned = np.array([1, 1, 1, 0] * 40, dtype=np.int8)
    base = np.array([1, 0, 0, 0] * 40, dtype=np.int8)
    gaps = np.where(np.arange(160) < 8, -1, base).astype(np.int8)
    assert gap(aligned, gaps, gaps).value == 0.0


@pytest.mark.parametrize(("base", "reason"), [([1, 1, 1, 0], "not distinguishable from 0"), ([-1, -1, -1, 1], "two")])
def test_an_undefined_gap_says_why(base: list[int], reason: str) -> None:
    aligned = np.array([1, 1, 1, 0], dtype=np.int8)
    found = gap(aligned, np.array(base, dtype=np.int8), aligned)
    assert found.value is None
    assert reason in found.reason
