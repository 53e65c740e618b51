"""Documents: how chats are spelled, which say nothing, and what the ledger is told of those."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from tokenizers import processors

from caq.data import Calibration, token_blocks
from caq.data.documents import content, encode, encode_running, wrong
from caq.errors import InvalidInput
from caq.files.records import Record
from caq.recipe import DataRecipe
from tests.checkpoint.conftest import tiny_tokenizer

CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "yes"}]
SHARED = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "yes"}]
STRICT = "{% if messages[0].role != 'user' %}{{ raise_exception('roles must alternate') }}{% endif %}"


def said(**fields: object) -> object:
    record = Record("here", fields)
    assert [*wrong(record, chats=True)] == []
    return content(record, chats=True)


def blocks(path: Path, rows: list[dict[str, Any]], tokenizer: Any, samples: int = 2) -> Calibration:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return token_blocks(DataRecipe(text=str(path), samples=samples, length=4, allow_short=True), tokenizer, 0)


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": CHAT},
        {"conversations": SHARED},
        {"conversation": CHAT, "model": "x", "turn": 1},
        {"conversations": CHAT},
        {"messages": SHARED},
        {"messages": CHAT, "text": None, "prompt": "q"},
        {"conversations": [{"from": "User", "value": "q"}, {"from": "chatGPT", "value": "yes", "weight": None}]},
        {"messages": [{**CHAT[0], "content": [{"type": "text", "text": "q"}]}, {**CHAT[1], "content": ["y", "es"]}]},
        {"messages": CHAT, "text": "q, yes"},
    ],
)
def test_a_chat_is_the_same_in_every_spelling(fields: dict[str, object]) -> None:
    assert said(**fields) == CHAT


@pytest.mark.parametrize(
    ("speaker", "role"),
    [("system", "system"), ("bing", "assistant"), ("bard", "assistant"), ("tool", "tool"), ("function", "tool")],
)
def test_sharegpts_speakers_are_roles(speaker: str, role: str) -> None:
    assert said(conversations=[{"from": speaker, "value": "x"}]) == [{"role": role, "content": "x"}]


@pytest.mark.parametrize(
    "fields",
    [
        {"text": " \n"},
        {"text": None},
        {"messages": []},
        {"messages": None, "text": ""},
        {"messages": [CHAT[0], {"role": "assistant", "content": ""}]},
        {"messages": [CHAT[0], {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]},
        {"messages": [CHAT[0], {"role": "assistant", "tool_calls": [{"id": "1"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
    ],
)
def test_a_document_without_words_says_nothing(fields: dict[str, object]) -> None:
    assert said(**fields) is None


def test_an_empty_system_prompt_is_one_that_was_left_out() -> None:
    assert said(messages=[{"role": "system", "content": None}, *CHAT]) == [{"role": "system", "content": ""}, *CHAT]


def test_a_chat_that_is_empty_leaves_its_text() -> None:
    assert said(messages=[], text="the cat") == "the cat"


def test_documents_that_say_nothing_or_are_refused_are_passed_over_and_counted(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = STRICT + tokenizer.chat_template
    rows = [{"messages": CHAT}] * 4 + [{"messages": []}] * 3 + [{"messages": CHAT[1:]}] * 2 + [{"messages": CHAT[:1]}]
    found = blocks(tmp_path / "rows.jsonl", rows, tokenizer, samples=100)
    _, entry = found.entries
    assert entry.event == "documents-passed-over"
    assert entry.details == {"empty": 3, "refused": 2, "used": 5}
    assert "passed over 3 documents that say nothing and 2 that the chat template refuses" in entry.message
    assert "the chat template refuses it: roles must alternate" in entry.message
    assert found.origin["documents"] == 5


def test_a_set_of_which_nothing_is_left_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="is empty; give a text to calibrate on"):
        blocks(tmp_path / "rows.jsonl", [{"messages": []}] * 3, tiny_tokenizer())


@pytest.mark.parametrize("template", [True, False])
def test_of_a_chat_and_a_text_the_template_decides_and_the_ledger_says_it(template: bool, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    alone = {"messages": CHAT} if template else {"text": "the cat sat"}
    if not template:
        tokenizer.chat_template = None
    rows = [{"messages": CHAT, "text": "the cat sat"}] * 4
    found = blocks(tmp_path / "both.jsonl", rows, tokenizer)
    (entry,) = found.entries
    assert entry.event == "one-of-two-taken"
    assert f"the {'chat' if template else 'text'} was taken" in entry.message
    assert found.ids.equal(blocks(tmp_path / "one.jsonl", [alone] * 4, tokenizer).ids)


def test_a_table_whose_rows_are_of_two_kinds_is_read(tmp_path: Path) -> None:
    rows = [{"text": "the cat", "conversation": None}, {"text": None, "conversation": CHAT}] * 3
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    data = DataRecipe(text=str(tmp_path / "rows.parquet"), samples=1, length=20)
    assert token_blocks(data, tiny_tokenizer(), 0).entries == ()


def ending(single: str) -> Any:
    tokenizer = tiny_tokenizer()
    tokens = [(str(token), tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=tokens)
    return tokenizer


@pytest.mark.parametrize("single", ["<s> $A", "<s> $A </s>"])
def test_a_tokenizer_that_ends_texts_itself_gives_the_tokens_of_one_that_does_not(single: str) -> None:
    tokenizer, plain = ending(single), ending("$A")
    words, (begin, end) = plain("the cat")["input_ids"], (plain.bos_token_id, plain.eos_token_id)
    assert encode_running("the cat", tokenizer) == [begin, *words]
    assert encode("the cat", tokenizer) == [begin, *words, end]
    assert encode_running("the cat</s>", tokenizer)[-1] == end
    assert encode(CHAT, tokenizer) == encode(CHAT, plain)


def test_a_tokenizer_without_special_tokens_adds_none() -> None:
    bare = ending("$A")
    bare.bos_token = bare.eos_token = None
    words = bare("the cat")["input_ids"]
    assert encode("the cat", bare) == encode_running("the cat", bare) == words
