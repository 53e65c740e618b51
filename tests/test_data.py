import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from caq.data import read_text, token_blocks
from caq.errors import InvalidInput

from .checkpoint.conftest import tiny_tokenizer

WORDS = " ".join(f"word{number}" for number in range(2000))


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


def refusal(path: Path, tokenizer: Any, **changes: Any) -> tuple[str, ...]:
    arguments: dict[str, Any] = {"samples": 1, "length": 4, "seed": 0} | changes
    with pytest.raises(InvalidInput) as caught:
        token_blocks(path, tokenizer, **arguments)
    return caught.value.problems


def test_blocks_are_disjoint_windows_of_the_text(text: Path, tokenizer: Any) -> None:
    blocks, entries = token_blocks(text, tokenizer, samples=20, length=32, seed=3)
    whole = tokenizer(WORDS)["input_ids"]
    assert blocks.shape == (20, 32)
    assert blocks.dtype == torch.int64
    assert entries == ()
    starts = []
    for block in blocks.tolist():
        starts += [start for start in range(len(whole) - 31) if whole[start : start + 32] == block]
    assert len(starts) == 20
    assert all(abs(a - b) >= 32 for i, a in enumerate(starts) for b in starts[:i])


def test_the_seed_decides(text: Path, tokenizer: Any) -> None:
    draws = [token_blocks(text, tokenizer, samples=5, length=16, seed=seed)[0] for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_a_short_text_is_refused_or_recorded(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "short.txt"
    path.write_text("the cat sat on the mat " * 8)
    tokens = len(tokenizer(path.read_text())["input_ids"])
    found = tokens // 16
    (problem,) = refusal(path, tokenizer, samples=100, length=16)
    assert f"has {found} blocks of 16 tokens, 100 were asked for" in problem
    assert "allow_short" in problem
    blocks, (entry,) = token_blocks(path, tokenizer, samples=100, length=16, seed=0, allow_short=True)
    assert blocks.shape == (found, 16)
    assert entry.event == "fewer-samples"
    assert entry.details == {"asked": 100, "found": found, "length": 16}
    (problem,) = refusal(path, tokenizer, samples=1, length=tokens + 1, allow_short=True)
    assert "not one block" in problem


@pytest.mark.parametrize("content", ["", " \n\t\n"])
@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_an_empty_text_is_refused(tmp_path: Path, tokenizer: Any, content: str, suffix: str) -> None:
    path = tmp_path / f"empty{suffix}"
    path.write_text(content)
    (problem,) = refusal(path, tokenizer, allow_short=True)
    assert "is empty" in problem


def test_messages_pass_through_the_template_with_one_bos_each(tmp_path: Path, tokenizer: Any) -> None:
    path = write_jsonl(tmp_path / "chat.jsonl", *(talk(f"question {number}") for number in range(30)))
    rendered = [
        tokenizer(f"<s><user>question {number}</s><assistant>yes</s>", add_special_tokens=False)["input_ids"]
        for number in range(30)
    ]
    total = sum(map(len, rendered))
    blocks, _ = token_blocks(path, tokenizer, samples=1, length=total, seed=5)
    packed = blocks[0].tolist()
    starts = [place for place, token in enumerate(packed) if token == tokenizer.bos_token_id]
    pieces = [packed[a:b] for a, b in zip(starts, [*starts[1:], total], strict=True)]
    assert Counter(map(tuple, pieces)) == Counter(map(tuple, rendered))
    assert pieces != rendered  # shuffled


def test_texts_are_packed_between_bos_and_eos(tmp_path: Path, tokenizer: Any) -> None:
    # A Unicode line separator is not a line break of JSON lines.
    path = write_jsonl(tmp_path / "text.jsonl", '{"text": "the\u2028cat"}', "", {"text": "a dog", "source": "x"})
    ids = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in ("the\u2028cat", "a dog")]
    blocks, _ = token_blocks(path, tokenizer, samples=1, length=len(ids[0]) + len(ids[1]), seed=0)
    assert blocks[0].tolist() in (ids[0] + ids[1], ids[1] + ids[0])


def test_every_malformed_record_is_named_by_its_line(tmp_path: Path, tokenizer: Any) -> None:
    records: list[object] = [
        {"text": "fine"},
        "{not json",
        [1],
        {"text": 3},
        {"prompt": "x"},
        {"text": "x", **talk("y")},
        {"messages": []},
        {"messages": [{"role": "user"}]},
    ]
    found = refusal(write_jsonl(tmp_path / "bad.jsonl", *records), tokenizer)
    assert [problem.split(", ", 1)[1].split(":")[0] for problem in found] == [f"line {n}" for n in range(2, 9)]
    found = refusal(write_jsonl(tmp_path / "worse.jsonl", *["["] * 50), tokenizer)
    assert len(found) == 21
    assert found[-1].endswith("and 30 more like these")


def test_messages_without_a_template_are_refused(tmp_path: Path) -> None:
    bare = tiny_tokenizer()
    bare.chat_template = None
    (problem,) = refusal(write_jsonl(tmp_path / "chat.jsonl", talk("q")), bare)
    assert "has no chat template" in problem


def test_unreadable_texts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "absent.txt", tmp_path / "binary.txt", tmp_path):
        with pytest.raises(InvalidInput, match=r"give a \.txt or \.jsonl file, or wikitext2"):
            read_text(path)


def test_a_named_text_is_had_from_the_cache_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(InvalidInput, match=r"wikitext2: cannot be had from the hub.*give a text file instead"):
        read_text("wikitext2")
    (tmp_path / "wikitext2").write_text("a local file of that name comes first")
    assert read_text("wikitext2").startswith("a local file")
