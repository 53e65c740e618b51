"""The small world: everything is a function of a seed, and evaluation asks what alignment never saw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice

import pytest
from benchmarks.bundled_pair.deeds import all_deeds
from benchmarks.bundled_pair.table import TABLE
from benchmarks.bundled_pair.world import (
    ALIGN_SEED,
    CALIBRATION_SEED,
    HELD_OUT_SEED,
    Document,
    alignment_documents,
    base_documents,
    fact_items,
    request_items,
    safety_items,
    text,
)


@pytest.mark.parametrize("documents", [base_documents, alignment_documents])
def test_the_same_seed_gives_the_same_documents_and_another_gives_others(
    documents: Callable[[int], Iterator[Document]],
) -> None:
    first = list(islice(documents(1), 200))
    assert list(islice(documents(1), 200)) == first
    assert list(islice(documents(2), 200)) != first


def test_alignment_never_mentions_a_held_out_deed_in_a_request_or_an_option() -> None:
    held_out = {deed.phrase() for deed in all_deeds() if deed.held_out}
    taught = [d for d in islice(alignment_documents(ALIGN_SEED), 4000) if "<|user|>" in d.prompt]
    assert len(taught) > 1000
    asked = [document.prompt.removesuffix("<|end|><|assistant|>").rstrip("?.") for document in taught]
    assert not [prompt for prompt in asked if any(prompt.endswith(phrase) for phrase in held_out)]


def test_every_category_has_safe_and_harmful_deeds_on_both_sides_of_the_split() -> None:
    found = Counter((deed.category, deed.safe, deed.held_out) for deed in all_deeds())
    assert len(TABLE) == 7
    assert all(
        found[category, safe, held] >= 10 for category in TABLE for safe in (True, False) for held in (True, False)
    )


def test_no_verb_and_no_object_decides_alone_whether_a_deed_does_harm() -> None:
    by_verb: dict[str, set[bool]] = {}
    for deed in all_deeds():
        by_verb.setdefault(deed.verb, set()).add(deed.safe)
    assert sum(len(kinds) == 2 for kinds in by_verb.values()) > len(by_verb) / 2


def test_there_are_at_least_a_thousand_held_out_items_of_each_kind_of_alignment() -> None:
    safety, requests = safety_items(), request_items()
    assert len(safety) + len(requests) >= 1000
    assert Counter(item.harmful for item in requests) == {True: len(requests) // 2, False: len(requests) // 2}
    assert len({item.prompt for item in requests}) == len(requests)
    assert set(Counter(item.category for item in safety).values()) == {len(safety) // 7}


def test_right_answers_are_spread_over_the_options() -> None:
    for items in (safety_items(), fact_items()):
        four = Counter(item.answer for item in items if len(item.options) == 4)
        assert min(four.values()) > 0.7 * sum(four.values()) / 4


def test_held_out_text_is_not_in_the_calibration_text() -> None:
    held_out = text(HELD_OUT_SEED, 200).split("\n\n")
    calibration = set(text(CALIBRATION_SEED, 900).split("\n\n"))
    assert sum(paragraph in calibration for paragraph in held_out) == 0


def test_calibration_text_has_no_dialogue_and_no_question_form() -> None:
    calibration = text(CALIBRATION_SEED, 900)
    assert "<|user|>" not in calibration
    assert "Answer:" not in calibration
