"""Tokenizers that end every text: what they add is no part of an option, and follows no prompt."""

from __future__ import annotations

import copy

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caq.items.questions import Question
from caq.measure.answers import choose_facts
from caq.tokens import encode, without_ends
from tests.support.questions import QUESTIONS
from tests.support.runners import runner

BEGIN, END = "<|user|>", "<|end|>"


def adding(tokenizer: PreTrainedTokenizerBase, single: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer with a post-processor that adds tokens around every text."""
    special = [(name, tokenizer.convert_tokens_to_ids(name)) for name in (BEGIN, END)]
    other = copy.deepcopy(tokenizer)
    other.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=special)
    return other


def test_a_text_ends_where_it_ends_and_begins_as_the_tokenizer_has_it(tokenizer: PreTrainedTokenizerBase) -> None:
    both, first = (adding(tokenizer, single) for single in (f"{BEGIN} $A {END}", f"{BEGIN} $A"))
    texts = ["the door", "", f"the door{END}"]
    expected = [list(first(text)["input_ids"]) for text in texts]
    assert both(texts[0])["input_ids"] != expected[0]
    assert [list(ids) for ids in encode(both, texts, add_special_tokens=True)] == expected
    assert [list(without_ends(both)(text)["input_ids"]) for text in texts] == expected
    plain = [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    assert [list(ids) for ids in encode(both, texts, add_special_tokens=False)] == plain


@pytest.mark.parametrize("single", [f"$A {END}", f"$A {END} {END}"])
def test_the_same_options_are_chosen_and_the_same_words_written(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, single: str
) -> None:
    ending = adding(tokenizer, single)
    ours, theirs = runner(model, tokenizer), runner(model, ending)
    asked: list[Question] = QUESTIONS
    assert choose_facts(theirs, ending, asked) == choose_facts(ours, tokenizer, asked)
    texts = [question.question for question in asked[:3]]
    written = ours.greedy(texts, 4, add_special_tokens=True)
    assert theirs.greedy(texts, 4, add_special_tokens=True) == written
    assert list(theirs.encode("the door")) == list(ours.encode("the door"))
