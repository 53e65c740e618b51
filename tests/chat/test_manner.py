"""How templates are kept from thinking: by switches of many names, found by rendering."""

from __future__ import annotations

import copy

import pytest
from transformers import PreTrainedTokenizerBase

from caq.chat import find_template, manner_of, render_chat, render_prompt, unknown_options
from caq.errors import InvalidInput
from tests.support.models import TEMPLATE

BEGIN = "{%- if add_generation_prompt %}"
#: Template, what is said of it, and how a prompt ends.
MODELS = {
    "no switch": (TEMPLATE, "", "<|assistant|>"),
    "Qwen3": (
        TEMPLATE + BEGIN + "{%- if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>"
        "{%- endif %}{%- endif %}",
        "asked with enable_thinking=false",
        "<think>\n\n</think>",
    ),
    "Qwen3.5": (
        TEMPLATE + BEGIN + "{%- if enable_thinking is defined and not enable_thinking %}<think></think>{%- else %}"
        "<think>{%- endif %}{%- endif %}",
        "asked with enable_thinking=false",
        "<think></think>",
    ),
    "Granite": ("{%- if thinking %}Think first.{%- endif %}" + TEMPLATE, "asked with thinking=false", "<|assistant|>"),
    "DeepSeek-R1": (TEMPLATE + BEGIN + "<think>\n{% endif %}", "answers begin behind </think>", "<think>\n"),
    "gpt-oss": (
        "{%- if reasoning_effort is not defined %}{%- set reasoning_effort = 'medium' %}{%- endif %}"
        "{{ 'Reasoning: ' + reasoning_effort }}" + TEMPLATE,
        'asked with reasoning_effort="low"',
        "<|assistant|>",
    ),
    "Mistral": (
        "{%- if reasoning_effort is defined and reasoning_effort not in ['none', 'high'] %}"
        "{{ raise_exception('none or high') }}{%- endif %}" + TEMPLATE + BEGIN + "{%- if reasoning_effort is undefined "
        "or reasoning_effort == 'high' %}[THINK]{%- endif %}{%- endif %}",
        'asked with reasoning_effort="none"',
        "<|assistant|>",
    ),
    "Seed-OSS": (
        "{%- if thinking_budget is defined and thinking_budget == 0 %}{%- set off = true %}{%- endif %}"
        + TEMPLATE + BEGIN + "{%- if off is not defined %}<seed:think>{%- endif %}{%- endif %}",
        "asked with thinking_budget=0",
        "<|assistant|>",
    ),
    "Nemotron": (
        "{%- set ns = namespace(think=true) %}{%- for m in messages %}{%- if '/no_think' in m.content %}"
        "{%- set ns.think = false %}{%- endif %}{%- endfor %}" + TEMPLATE
        + BEGIN + "{%- if ns.think %}<think>\n{%- else %}<think></think>{%- endif %}{%- endif %}",
        "asked with /no_think",
        "<think></think>",
    ),
    "off by another name": (
        TEMPLATE + BEGIN + "{%- if not skip_thinking %}<thought>{%- endif %}{%- endif %}",
        "asked with skip_thinking=true",
        "<|assistant|>",
    ),
    "a word, and no switch": ("{{ reasoning }}" + TEMPLATE, "", "<|assistant|>"),
    "a thought that ends": (TEMPLATE + BEGIN + "<think>\n\n</think>{% endif %}", "", "</think>"),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_asked_without_a_thought_where_its_template_can(
    tokenizer: PreTrainedTokenizerBase, name: str
) -> None:
    template, words, end = MODELS[name]
    asked = copy.deepcopy(tokenizer)
    asked.chat_template = template
    assert manner_of(asked).words == words
    assert render_prompt(asked, "How do I bake bread?").endswith(end)


def test_what_a_user_gives_comes_first(tokenizer: PreTrainedTokenizerBase) -> None:
    asked = copy.deepcopy(tokenizer)
    asked.chat_template = MODELS["Qwen3.5"][0]
    options = {"enable_thinking": True}
    assert manner_of(asked, options).words == "asked with enable_thinking=true; answers begin behind </think>"
    assert render_prompt(asked, "Hello", options).endswith("<think>")
    found = find_template(asked)
    assert found is not None
    assert [*unknown_options([found], options)] == []
    (problem,) = unknown_options([found], {"enable_thinkin": True})
    assert problem == "--chat-option enable_thinkin: no chat template names it; did you mean enable_thinking?"


def test_who_turns_one_switch_turns_them_all(tokenizer: PreTrainedTokenizerBase) -> None:
    asked = copy.deepcopy(tokenizer)
    asked.chat_template = "{{ enable_thinking }}{% if thinking_budget == 0 %}{% endif %}" + MODELS["Nemotron"][0]
    assert (
        manner_of(asked, {"thinking_budget": 512}).words
        == "asked with thinking_budget=512; answers begin behind </think>"
    )
    assert manner_of(asked).words == "asked with thinking_budget=0, /no_think"


def test_a_template_that_takes_no_plain_question_may_take_other_chats(tokenizer: PreTrainedTokenizerBase) -> None:
    asked = copy.deepcopy(tokenizer)
    asked.chat_template = (
        "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATE
    )
    assert render_chat(asked, [{"role": "system", "content": "Be brief."}]) == "<|system|>Be brief.<|end|>"
    with pytest.raises(InvalidInput, match="no system"):
        render_prompt(asked, "Hello")


def test_a_word_of_the_user_is_no_opened_thought(tokenizer: PreTrainedTokenizerBase) -> None:
    talked = copy.deepcopy(tokenizer)
    talked.chat_template = "Think in <think> and </think>. Never begin with <think>." + TEMPLATE
    assert manner_of(talked).closing == ""
