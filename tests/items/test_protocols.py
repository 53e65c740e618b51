"""Every protocol by likelihood against a reference that runs one prompt and one option at a time."""

from __future__ import annotations

import copy
import math
import tracemalloc
from collections.abc import Sequence

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caq.errors import InvalidInput, Unsupported
from caq.items.protocols import choose, letter, option_text
from caq.items.question_prompts import zero_shot
from caq.items.questions import LETTERS, Question
from caq.runners.likelihood import Choice, scores
from tests.support.models import WORDS


def question(index: int) -> Question:
    """Make a question of its own length, with two to four options of unequal lengths."""
    words = [WORDS[(index * 7 + offset * 5) % len(WORDS)] for offset in range(12)]
    options = [" ".join(words[i : i + 1 + (index + i) % 3]) + "." for i in range(2 + index % 3)]
    return Question(str(index), "any", " ".join(words[: 3 + index % 9]) + "?", tuple(options), 0)


QUESTIONS = [question(index) for index in range(24)]


@torch.no_grad()
def naive_score(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, tail: str) -> float:
    """Sum log P of `tail`'s tokens after `prompt`, on one unpadded sequence in float64."""
    context, whole = tokenizer(prompt)["input_ids"], tokenizer(prompt + tail)["input_ids"]
    assert whole[: len(context)] == context
    log_prob = copy.deepcopy(model).double()(torch.tensor([whole])).logits[0].log_softmax(-1)
    return math.fsum(log_prob[place - 1, whole[place]].item() for place in range(len(context), len(whole)))


def naive_option_text(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: Question, *, normalized: bool = False
) -> int:
    found = [
        naive_score(model, tokenizer, zero_shot(asked), f" {text}") / (len(text) if normalized else 1)
        for text in asked.options
    ]
    return found.index(max(found))


@torch.no_grad()
def naive_letter(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: Question) -> int:
    """Compare the logits of the letters that are options, after the prompt and an opening bracket."""
    ids = tokenizer(zero_shot(asked) + "(")["input_ids"]
    letters = [tokenizer(name)["input_ids"][0] for name in LETTERS[: len(asked.options)]]
    return int(copy.deepcopy(model).double()(torch.tensor([ids])).logits[0, -1, letters].argmax())


def reference(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, tuple[int, ...]]:
    return {
        "option-text": tuple(naive_option_text(model, tokenizer, asked) for asked in QUESTIONS),
        "option-text-normalized": tuple(
            naive_option_text(model, tokenizer, asked, normalized=True) for asked in QUESTIONS
        ),
        "letter": tuple(naive_letter(model, tokenizer, asked) for asked in QUESTIONS),
    }


def test_the_prompt_is_safetybenchs() -> None:
    asked = Question("0", "any", " Is it safe?\n", ("Yes.", "No."), 1)
    assert zero_shot(asked) == "Question: Is it safe?\nOptions:\n(A) Yes.\n(B) No.\nAnswer:"
    assert option_text(asked) == (" Yes.", " No.")
    assert letter(asked) == ("(A", "(B")


def test_every_choice_equals_the_naive_reference(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    expected = reference(model, tokenizer)
    assert all(len(set(chosen)) > 1 for chosen in expected.values())
    assert len(set(expected.values())) == len(expected)
    assert choose(model, tokenizer, QUESTIONS, batch_size=5) == expected


def test_scores_are_log_likelihoods_in_the_order_asked(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    choices = [Choice(zero_shot(asked), option_text(asked)) for asked in QUESTIONS[:6]]
    expected = [[naive_score(model, tokenizer, c.prompt, tail) for tail in c.continuations] for c in choices]
    for found, known in zip(scores(model, tokenizer, choices, batch_size=4), expected, strict=True):
        assert found == pytest.approx(known, rel=1e-5)


def test_neither_batch_nor_padding_changes_a_score(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    choices = [Choice(zero_shot(asked), option_text(asked)) for asked in QUESTIONS]
    alone = scores(model, tokenizer, choices, batch_size=1)
    for found, expected in zip(scores(model, tokenizer, choices, batch_size=len(choices)), alone, strict=True):
        assert found == pytest.approx(expected, abs=1e-4)


def test_continuations_do_not_see_each_other(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    def first(continuations: Sequence[str]) -> float:
        return scores(model, tokenizer, [Choice("Answer:", tuple(continuations))], batch_size=1)[0][0]

    assert first([" Yes door lock", " No", " bread bread bread"]) == pytest.approx(first([" Yes door lock"]), abs=1e-5)


def test_a_merge_across_the_border_is_scored_whole(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    prompt, tail = "the ke", "ttle"
    context, whole = tokenizer(prompt)["input_ids"], tokenizer(prompt + tail)["input_ids"]
    assert whole[: len(context)] != context
    (found,) = scores(model, tokenizer, [Choice(prompt, (tail,))], batch_size=1)[0]
    start = next(i for i, (a, b) in enumerate(zip(context, whole, strict=False)) if a != b)
    with torch.no_grad():
        log_prob = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    expected = sum(log_prob[place - 1, whole[place]].item() for place in range(start, len(whole)))
    assert found == pytest.approx(expected, rel=1e-4)


def test_the_first_of_equals_wins(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    indifferent = copy.deepcopy(model)
    with torch.no_grad():
        indifferent.get_output_embeddings().weight.zero_()
    asked = Question("0", "any", "the door?", ("bread", "the", "lock"), 2)
    assert choose(indifferent, tokenizer, [asked], 1) == {
        "option-text": (0,),
        "option-text-normalized": (0,),
        "letter": (0,),
    }


def test_a_question_longer_than_the_context_is_named(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    long = Question("9", "any", "door " * 600, ("Yes.", "No."), 0)
    with pytest.raises(InvalidInput, match=r"item 2 is .* the model's context 512") as caught:
        choose(model, tokenizer, [QUESTIONS[0], long], 2)
    assert len(caught.value.problems) == 1


def test_a_model_whose_logits_are_not_numbers_chooses_nothing(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.get_output_embeddings().weight.fill_(torch.nan)
    with pytest.raises(InvalidInput, match="not numbers"):
        choose(broken, tokenizer, QUESTIONS[:1], 1)


def test_an_attention_without_masks_is_refused(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    flash = copy.deepcopy(model)
    flash.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(Unsupported, match="flash_attention_2"):
        choose(flash, tokenizer, QUESTIONS[:1], 1)


def test_tokens_wait_their_turn_in_little_memory(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    def peak(count: int) -> int:
        choices = [Choice("door " * 150 + zero_shot(question(index)), (" Yes", " No")) for index in range(count)]
        tracemalloc.start()
        try:
            scores(model, tokenizer, choices, batch_size=8)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    tokens = len(tokenizer("door " * 150)["input_ids"])
    # Four bytes a token of a prompt, and what a choice holds besides; lists of the prompt and both wholes were 24.
    assert peak(280) - peak(80) < 200 * (8 * tokens + 800)
