from __future__ import annotations

import math

import pytest

from caq.measure.record import FACTS, HELPFULNESS, REFUSAL
from caq.report.render.words import cut, heading, name, number, percent, printable, probability
from caq.report.wording import signed


def test_what_xml_forbids_is_replaced_and_nothing_else() -> None:
    assert printable("a\x00b\x1f\ud800\ufffe") == "a\ufffdb\ufffd\ufffd\ufffd"
    kept = "tab\t line\n \r é 漢 \u202e \U0001f600"
    assert printable(kept) == kept


def test_a_long_text_is_cut_and_says_how_much_is_missing() -> None:
    assert cut("x" * 10, 10) == "x" * 10
    assert cut("x" * 1_000_010, 10) == "x" * 10 + "… 1,000,000 more characters"


def test_a_name_is_one_line() -> None:
    assert name("  two\nlines\t here ") == "two lines here"
    assert name("n" * 121) == "n" * 120 + "… 1 more characters"


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        ("safety/letter", "Safety questions (letter)"),
        (REFUSAL, "Harmful prompts refused"),
        (HELPFULNESS, "Harmless prompts answered"),
        (FACTS, "Factual questions"),
        ("other\nthing", "other thing"),
    ],
)
def test_a_measures_heading_says_what_is_good(measure: str, expected: str) -> None:
    assert heading(measure) == expected


def test_shares_differences_and_probabilities_in_words() -> None:
    assert (percent(0.8514), signed(0.012), signed(-0.0514), signed(0.0)) == ("85.1 %", "+1.2", "−5.1", "0.0")
    assert (probability(None), probability(2e-11), probability(0.0243)) == ("–", "< 0.0001", "0.024")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "–"),
        (math.nan, "not finite"),
        (math.inf, "not finite"),
        (0.0, "0"),
        (0.2, "0.200"),
        (103.4, "103"),
        (12345.6, "12,346"),
        (0.0000123, "1.23e-05"),
    ],
)
def test_numbers_have_three_significant_digits(value: float | None, expected: str) -> None:
    assert number(value) == expected
