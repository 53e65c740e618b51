"""Blocks of tokens: what is drawn from a text, how documents are packed, and what is refused or recorded."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from caq.data import Calibration, token_blocks
from caq.data.blocks import draw_blocks
from caq.errors import InvalidInput
from caq.loading import load_tokenizer
from caq.recipe import DataRecipe
from caq.testbed.export import export
from tests.checkpoint.conftest import tiny_tokenizer

WORDS = " ".join(f"word{number}" for number in range(2000))
WIKITEXT = Path(__file__).parents[3] / "shared" / "data" / "wikitext2"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(WORDS)
    return path


def write_jsonl(path: Path, *records: object) -> Path:
    path.write_text("\n".join(record if isinstance(record, str) else json.dumps(record) for record in records))
    return path


def talk(question: str, answer: str = "yes") -> dict[str, object]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def blocks_of(path: Path, tokenizer: Any, samples: int, length: int, seed: int = 0, **more: Any) -> Calibration:
    return token_blocks(DataRecipe(text=str(path), samples=samples, length=length, **more), tokenizer, seed)


def refusal(path: Path, tokenizer: Any, samples: int = 1, length: int = 4, **more: Any) -> tuple[str, ...]:
    with pytest.raises(InvalidInput) as caught:
        blocks_of(path, tokenizer, samples, length, **more)
    return caught.value.problems


def pieces(tokens: Sequence[int], mark: int) -> list[list[int]]:
    """Split tokens where `mark` begins a piece."""
    starts = [place for place, token in enumerate(tokens) if token == mark]
    return [list(tokens[a:b]) for a, b in zip(starts, [*starts[1:], len(tokens)], strict=True)]


@pytest.mark.parametrize(
    ("samples", "length", "seed", "sha256"),
    [
        (128, 128, 0, "e714443457462e95b6fc68098d51537c7bb25786433ef97a181d07d5c7c743e4"),
        (16, 64, 7, "0a1be6acb73c6f024513f2224259463402cbca6958893e1e952ecf24d01b40e1"),
    ],
)
def test_the_bundled_text_gives_the_blocks_that_it_always_gave(
    samples: int, length: int, seed: int, sha256: str, tmp_path: Path
) -> None:
    export(tmp_path / "pair")
    tokenizer = load_tokenizer(tmp_path / "pair" / "aligned")
    ids = blocks_of(tmp_path / "pair" / "calibration.txt", tokenizer, samples, length, seed).ids
    assert hashlib.sha256(ids.numpy().tobytes()).hexdigest() == sha256


def test_blocks_are_disjoint_windows_of_the_text(text: Path, tokenizer: Any) -> None:
    found = blocks_of(text, tokenizer, 20, 32, seed=3)
    whole = tokenizer(WORDS)["input_ids"]
    assert found.ids.shape == (20, 32)
    assert found.ids.dtype == torch.int64
    assert found.entries == ()
    assert found.origin == {"source": str(text)}
    starts = []
    for block in found.ids.tolist():
        starts += [start for start in range(len(whole) - 31) if whole[start : start + 32] == block]
    assert len(starts) == 20
    assert all(abs(a - b) >= 32 for i, a in enumerate(starts) for b in starts[:i])


@given(st.integers(1, 40), st.integers(2, 9), st.integers(2, 400), st.integers(0, 5))
def test_every_token_is_in_one_block_at_most(samples: int, length: int, tokens: int, seed: int) -> None:
    data = DataRecipe(text="any", samples=samples, length=length, allow_short=True)
    generator = torch.Generator().manual_seed(seed)
    if tokens < length:
        with pytest.raises(InvalidInput, match="not one block"):
            draw_blocks(range(tokens), data, generator, {})
        return
    found = draw_blocks(range(tokens), data, generator, {})
    assert found.ids.shape == (min(samples, tokens // length), length)
    assert len(found.ids.unique()) == found.ids.numel()
    assert bool((found.ids.diff(dim=1) == 1).all())
    assert bool(found.entries) == (tokens // length < samples)


def test_the_seed_decides(text: Path, tokenizer: Any) -> None:
    draws = [blocks_of(text, tokenizer, 5, 16, seed).ids for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_a_short_text_is_refused_or_recorded(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "short.txt"
    path.write_text("the cat sat on the mat " * 8)
    tokens = len(tokenizer(path.read_text())["input_ids"])
    found = tokens // 16
    (problem,) = refusal(path, tokenizer, samples=100, length=16)
    assert f"has {found} blocks of 16 tokens, 100 were asked for; add text" in problem
    assert "allow_short" in problem
    short = blocks_of(path, tokenizer, 100, 16, allow_short=True)
    assert short.ids.shape == (found, 16)
    assert [entry.event for entry in short.entries] == ["fewer-samples"]
    assert short.entries[0].details == {"asked": 100, "found": found, "length": 16}
    (problem,) = refusal(path, tokenizer, length=tokens + 1, allow_short=True)
    assert "not one block" in problem


def test_messages_pass_through_the_template_with_one_bos_each(tmp_path: Path, tokenizer: Any) -> None:
    # The template writes a BOS, and so does the tokenizer of its own accord.
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    path = write_jsonl(tmp_path / "chat.jsonl", *(talk(f"question {number}") for number in range(30)))
    rendered = [
        tokenizer(f"<s><user>question {number}</s><assistant>yes</s>", add_special_tokens=False)["input_ids"]
        for number in range(30)
    ]
    total = sum(map(len, rendered))
    packed = pieces(blocks_of(path, tokenizer, 1, total, seed=5).ids[0].tolist(), tokenizer.bos_token_id)
    assert Counter(map(tuple, packed)) == Counter(map(tuple, rendered))
    assert packed != rendered  # shuffled


def test_sharegpt_conversations_are_chats_too(tmp_path: Path, tokenizer: Any) -> None:
    shared = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "yes"}]}
    theirs = blocks_of(write_jsonl(tmp_path / "shared.jsonl", shared), tokenizer, 1, 6).ids
    assert torch.equal(theirs, blocks_of(write_jsonl(tmp_path / "chat.jsonl", talk("q")), tokenizer, 1, 6).ids)


def test_texts_are_packed_between_bos_and_eos(tmp_path: Path, tokenizer: Any) -> None:
    # A Unicode line separator is not a line break of JSON lines, and a blank text is no document.
    records = ['{"text": "the\u2028cat"}', "", {"text": " "}, {"text": "a dog", "source": "x"}]
    path = write_jsonl(tmp_path / "text.jsonl", *records)
    ids = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in ("the\u2028cat", "a dog")]
    found = blocks_of(path, tokenizer, 1, len(ids[0]) + len(ids[1]))
    assert found.ids[0].tolist() in (ids[0] + ids[1], ids[1] + ids[0])
    assert found.origin["documents"] == 2


def test_no_more_documents_are_read_than_fill_the_blocks(tmp_path: Path, tokenizer: Any) -> None:
    path = write_jsonl(tmp_path / "text.jsonl", *({"text": "the cat"} for _ in range(100)))
    document = len(tokenizer("the cat")["input_ids"]) + 1
    found = blocks_of(path, tokenizer, 3, 2 * document)
    assert found.ids.shape == (3, 2 * document)
    assert found.origin["documents"] == 6


def test_a_template_that_asks_for_the_date_gives_the_same_tokens_every_day(tmp_path: Path) -> None:
    dated = tiny_tokenizer()
    dated.chat_template = "{{ date_string or strftime_now('%d %b %Y') }}" + dated.chat_template
    path = write_jsonl(tmp_path / "chat.jsonl", talk("q"))
    expected = dated("26 Jul 2024<s><user>q</s><assistant>yes</s>", add_special_tokens=False)["input_ids"]
    assert blocks_of(path, dated, 1, len(expected)).ids[0].tolist() == expected


@pytest.mark.parametrize("content", ["", " \n\t\n"])
@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_an_empty_text_is_refused(tmp_path: Path, tokenizer: Any, content: str, suffix: str) -> None:
    path = tmp_path / f"empty{suffix}"
    path.write_text(content)
    (problem,) = refusal(path, tokenizer, allow_short=True)
    assert "is empty" in problem or "no records" in problem


def test_documents_of_white_space_alone_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    (problem,) = refusal(write_jsonl(tmp_path / "blank.jsonl", {"text": " "}, {"text": ""}), tokenizer)
    assert "is empty" in problem


def test_every_malformed_document_is_named_by_its_line(tmp_path: Path, tokenizer: Any) -> None:
    records: list[object] = [
        {"text": "fine"},
        {"text": 3},
        {"prompt": "x", "answer": "y"},
        {"messages": "hello"},
        {"messages": [{"role": "user", "content": 3}]},
        {"messages": [{"role": "user"}]},
        {"conversations": [{"from": "narrator", "value": "x"}]},
    ]
    found = refusal(write_jsonl(tmp_path / "bad.jsonl", *records), tokenizer)
    assert [problem.split("bad.jsonl:")[1].split(":")[0] for problem in found] == [str(n) for n in range(2, 8)]
    assert "needs one of text, messages, conversations, conversation; it has prompt, answer" in found[1]
    assert "from narrator; known: user, human" in found[-1]
    found = refusal(write_jsonl(tmp_path / "worse.jsonl", *["["] * 50), tokenizer)
    assert len(found) == 50  # of which the command line shows the first


def test_chats_that_the_template_cannot_say_are_refused(tmp_path: Path) -> None:
    path, bare, strict = write_jsonl(tmp_path / "chat.jsonl", talk("q")), tiny_tokenizer(), tiny_tokenizer()
    bare.chat_template = None
    assert "has no chat template" in refusal(path, bare)[0]
    strict.chat_template = "{{ raise_exception('roles must alternate') }}"
    assert refusal(path, strict) == (f"{path}:1: the chat template refuses it: roles must alternate",)


@pytest.mark.skipif(not WIKITEXT.exists(), reason="shared data is not here")
def test_wikitext2_is_tokenized_once_as_a_whole(tmp_path: Path, tokenizer: Any) -> None:
    # A slice: the tiny vocabulary makes millions of tokens of the whole.
    text = (WIKITEXT / "wiki.test.raw").read_text(encoding="utf-8")[:60_000]
    path = tmp_path / "wiki.test.raw"
    path.write_text(text, encoding="utf-8")
    whole = torch.tensor(tokenizer(text)["input_ids"])
    assert int((whole == tokenizer.bos_token_id).sum()) == 1
    ids = blocks_of(path, tokenizer, len(whole) // 128, 128, seed=1).ids
    windows = {tuple(window) for window in whole.unfold(0, 128, 1).tolist()}
    assert {tuple(block) for block in ids.tolist()} <= windows
    assert len(ids.unique(dim=0)) == len(whole) // 128
