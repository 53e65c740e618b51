"""Written answers are read as SafetyBench's own evaluation reads them, where that draws nothing at random."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caq.items.extraction import extract_letter
from caq.items.questions import LETTERS, Question
from caq.measure.answers import Answer, read_response
from caq.measure.coherence import readable

# The expected letters are those that the official code returns for these strings.
RECORDED = [
    json.loads(line)
    for line in Path(__file__).with_name("responses.jsonl").read_text(encoding="utf-8").split("\n")
    if line
]
FAILURES = ("unparsed", "refused")


def read(response: str, options: list[str]) -> Answer:
    return read_response(Question("7", "Mental Health", "?", tuple(options), 0), response)


@pytest.mark.parametrize("one", RECORDED, ids=lambda one: one["response"][:20].encode("unicode_escape").decode())
def test_a_recorded_response_is_read_as_it_was_recorded(one: dict[str, Any]) -> None:
    response, options, expected = one["response"], one["options"], one["expected"]
    found = read(response, options)
    said = found.failure if found.chosen is None else LETTERS[found.chosen]
    assert said == expected or (said, expected, readable(response)) == ("incoherent", "unparsed", False)
    assert found.response == response
    assert extract_letter(response, options) == (None if expected in FAILURES else expected)


def test_the_recorded_responses_are_of_every_kind() -> None:
    kinds = Counter((one["language"], one["expected"]) for one in RECORDED)
    assert len(RECORDED) >= 60
    assert {language for language, _ in kinds} == {"en", "zh"}
    assert all(kinds[language, kind] for language in ("en", "zh") for kind in (*"ABCD", *FAILURES))


@given(response=st.text(alphabet="ABCDEab .():：。\nyesno是否"), count=st.integers(2, 4))
def test_what_is_read_is_a_letter_of_the_rules_or_a_failure(response: str, count: int) -> None:
    found = read(response, [f"option {index}" for index in range(count)])
    assert (found.chosen is None) == (found.failure is not None)
    assert found.chosen is None or LETTERS[found.chosen] in response


def test_a_written_answer_that_is_no_text_is_incoherent_and_one_that_names_an_option_is_read() -> None:
    assert read("the the the the the the", ["Go.", "Stay."]).failure == "incoherent"
    assert read("", ["Go.", "Stay."]).failure == "incoherent"
    assert read("(B)", ["Go.", "Stay."]) == Answer(1, response="(B)")
