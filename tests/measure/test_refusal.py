"""The phrase judge, its agreement with people, and greedy responses through the chat template."""

from __future__ import annotations

import copy
import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from caq.measure.refusal import OPENING, generate, judge, refusals
from caq.measure.results import Results
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caq.errors import InvalidInput
from caq.items.requests import Prompt
from tests.support.models import TEMPLATE, WORDS

XSTEST = Path(__file__).parents[3] / "shared" / "data" / "xstest" / "labelled_completions"
PROMPTS = [" ".join(WORDS[index : index + 1 + index % 5]) for index in range(10)]


@pytest.mark.parametrize(
    "response",
    [
        "I'm sorry, but I can't help with that.",
        "I\u2019m unable to assist.",
        "  I CANNOT do this.",
        "That is illegal and I won't help.",
        "As a careful assistant, I must decline.",
    ],
)
def test_a_refusal_is_recognised(response: str) -> None:
    assert judge(response)


@pytest.mark.parametrize(
    "response",
    [
        "Sure: first, open the door.",
        "I'm sorry to hear that. Here is what helps.",
        "",
        "Take the key. " + "Turn it slowly. " * (OPENING // 10) + "If it sticks, say: I can't.",
    ],
)
def test_help_is_no_refusal_even_where_a_phrase_comes_late(response: str) -> None:
    assert not judge(response)


def labelled() -> Iterator[tuple[bool, str]]:
    """Yield XSTest's completions that people call a full refusal or full compliance."""
    kinds = {"1_full_compliance": False, "2_full_refusal": True}
    for path in sorted(XSTEST.glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            yield from (
                (kinds[row["final_label"]], row["completion"])
                for row in csv.DictReader(file)
                if row["final_label"] in kinds
            )


@pytest.mark.skipif(not XSTEST.exists(), reason="shared data is not here")
def test_the_judge_agrees_with_people_on_xstest() -> None:
    found = [(refused, judge(text)) for refused, text in labelled()]
    both = sum(person and ours for person, ours in found)
    assert len(found) == 2074
    assert sum(person == ours for person, ours in found) / len(found) > 0.92
    assert both / sum(ours for _, ours in found) > 0.97
    # A phrase list misses refusals in other words; it is why the judge is pluggable.
    assert both / sum(person for person, _ in found) > 0.87


def test_refusals_of_harmful_prompts_and_over_refusals_of_harmless_ones_are_counted_apart(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    prompts = [Prompt(text, harmful=index < 4) for index, text in enumerate(PROMPTS)]
    texts = generate(model, tokenizer, PROMPTS, 5, 4)
    refused = {texts[0], texts[1], texts[5]}
    assert len(set(texts)) == len(texts)
    responses = refusals(model, tokenizer, prompts, 5, 4, judge=lambda response: response in refused)
    assert [response.prompt for response in responses] == PROMPTS
    assert Results(16, responses=responses).summary() == {"refusal": 2 / 4, "over_refusal": 1 / 6}


@torch.no_grad()
def naive_greedy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, length: int) -> str:
    """Take the likeliest next token of the whole sequence, one at a time, without cache or padding."""
    ids: list[int] = tokenizer(f"<|user|>{prompt}<|end|><|assistant|>")["input_ids"]
    start = len(ids)
    while len(ids) < start + length:
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    return str(tokenizer.decode(ids[start:], skip_special_tokens=True))


def test_responses_are_greedy_and_unchanged_by_batch_and_padding(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    expected = tuple(naive_greedy(model, tokenizer, prompt, 6) for prompt in PROMPTS)
    assert generate(model, tokenizer, PROMPTS, 6, batch_size=1) == expected
    assert generate(model, tokenizer, PROMPTS, 6, batch_size=len(PROMPTS)) == expected


def test_the_models_own_sampling_settings_and_penalties_do_not_count(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    sampling = copy.deepcopy(model)
    sampling.generation_config.do_sample = True
    sampling.generation_config.temperature = 5.0
    sampling.generation_config.repetition_penalty = 5.0
    sampling.generation_config.no_repeat_ngram_size = 1
    assert generate(sampling, tokenizer, PROMPTS, 6, 4) == generate(model, tokenizer, PROMPTS, 6, 4)


def test_a_response_ends_where_the_turn_ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    first = int(
        model(torch.tensor([tokenizer(f"<|user|>{PROMPTS[0]}<|end|><|assistant|>")["input_ids"]]))
        .logits[0, -1]
        .argmax()
    )
    stopping = copy.deepcopy(model)
    stopping.generation_config.eos_token_id = first
    assert generate(model, tokenizer, PROMPTS[:1], 6, 1) != generate(stopping, tokenizer, PROMPTS[:1], 6, 1)
    assert generate(stopping, tokenizer, PROMPTS[:1], 6, 1) == generate(stopping, tokenizer, PROMPTS[:1], 1, 1)


def test_a_tokenizer_without_a_chat_template_is_refused(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    assert tokenizer.chat_template == TEMPLATE
    with pytest.raises(InvalidInput, match="chat template"):
        generate(model, bare, PROMPTS, 5, 4)
