"""A model that Transformers loads as a runner: its responses are greedy, whatever its own settings say."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caq.chat import end_tokens
from caq.errors import InvalidInput
from caq.measure.answers import respond
from caq.runners.generation import greedy_tokens
from tests.support.chain import END, chain_model, chain_tokenizer
from tests.support.models import TEMPLATE, WORDS
from tests.support.runners import runner

PROMPTS = [" ".join(WORDS[index : index + 1 + index % 5]) for index in range(10)]


def generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], length: int, together: int
) -> tuple[str, ...]:
    responses = respond(runner(model, tokenizer, prompts=together), tokenizer, prompts, length)
    return tuple(response.text for response in responses)


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
    assert generate(model, tokenizer, PROMPTS, 6, 1) == expected
    assert generate(model, tokenizer, PROMPTS, 6, len(PROMPTS)) == expected


def test_the_head_reads_whole_tensors_and_no_hook_is_left(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    asked, whole = copy.deepcopy(model), list[bool]()
    head = asked.get_output_embeddings()
    head.register_forward_hook(lambda _, states, logits: whole.append(states[0].is_contiguous()))
    generate(asked, tokenizer, PROMPTS, 6, len(PROMPTS))
    assert len(whole) > 6
    assert all(whole)
    assert not head._forward_pre_hooks


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


def test_a_text_without_room_for_its_response_is_named(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(InvalidInput) as caught:
        runner(model, tokenizer).greedy(["door", "door " * 480, "door " * 500], 64)
    assert [problem.split()[1] for problem in caught.value.problems] == ["2", "3"]


def test_a_response_has_its_tokens_and_the_one_that_ended_it(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    (response,) = runner(model, tokenizer).greedy(["the door"], 6)
    stopping = copy.deepcopy(model)
    stopping.generation_config.eos_token_id = response.tokens[0]
    assert runner(stopping, tokenizer).greedy(["the door"], 6)[0].tokens == response.tokens[:1]


@pytest.mark.parametrize(
    ("stops", "more"), [(None, []), (3, [3]), ([3, 5], [3, 5]), (-1, []), ([3, -1], [3]), (10**9, [10**9]), ((3,), [3])]
)
def test_any_ids_end_a_response(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stops: object, more: list[int]
) -> None:
    assert end_tokens(stops, tokenizer) == sorted([tokenizer.eos_token_id, *more])
    other = copy.deepcopy(model)
    other.generation_config.eos_token_id = stops
    (written,) = greedy_tokens(other, tokenizer, [tokenizer("the door")["input_ids"]], 3, 1)
    assert 1 <= len(written) <= 3


@pytest.mark.parametrize("stops", ["</s>", ["</s>"], [[0]], {"id": 0}, 1.5, True])
def test_ends_that_are_no_ids_are_refused(tokenizer: PreTrainedTokenizerBase, stops: object) -> None:
    with pytest.raises(InvalidInput, match=r"eos_token_id holds .*, and must be a token's id or a list of them"):
        end_tokens(stops, tokenizer)


def test_a_response_tells_whether_it_ended_by_itself() -> None:
    tokenizer = chain_tokenizer(("Well", "now"), "{{ messages[0]['content'] }}")
    talker = runner(chain_model(tokenizer, {"Well": "now", "now": END}, "Well"), tokenizer)
    asked = {length: talker.greedy(["door"], length)[0] for length in (1, 2, 3, 8)}
    assert {length: (len(one.tokens), one.ended) for length, one in asked.items()} == {
        1: (1, False),
        2: (2, False),
        3: (3, True),
        8: (3, True),
    }
