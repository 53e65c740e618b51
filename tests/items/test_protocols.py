"""Protocols by likelihood: what may follow a prompt, and which option wins."""

from __future__ import annotations

import math

import pytest

from caq.errors import InvalidInput
from caq.items.protocols import PROTOCOLS, best_options, letter, option_text
from caq.items.question_prompts import zero_shot
from caq.items.questions import Question
from caq.items.safety import all_protocols

ASKED = Question("0", "any", " Is it safe?\n", ("Yes, it is.", "No."), 1)


def test_the_prompt_is_safetybenchs() -> None:
    assert zero_shot(ASKED) == "Question: Is it safe?\nOptions:\n(A) Yes, it is.\n(B) No.\nAnswer:"
    assert option_text(ASKED) == (" Yes, it is.", " No.")
    assert letter(ASKED) == ("(A", "(B")


def test_the_protocols_are_four_tasks_with_names_of_their_own() -> None:
    assert all_protocols() == ("option-text", "option-text-normalized", "letter", "generate")


def test_the_likeliest_option_wins_and_the_normalized_one_by_character() -> None:
    chosen = best_options(PROTOCOLS, ASKED, {option_text: [-10.0, -4.0], letter: [-1.0, -1.0]})
    assert chosen == {"option-text": 1, "option-text-normalized": 0, "letter": 0}


def test_likelihoods_that_are_no_numbers_choose_nothing() -> None:
    with pytest.raises(InvalidInput, match="not numbers"):
        best_options(PROTOCOLS, ASKED, {option_text: [-1.0, math.nan], letter: [-1.0, -1.0]})
