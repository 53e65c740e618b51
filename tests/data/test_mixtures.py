"""Mixtures of calibration data: how they are written, dealt and ordered, what is refused, and a run with one."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from caq.checkpoint.inspect import inspect
from caq.data.blocks import Calibration, token_blocks
from caq.data.calibration import calibrate, mixed
from caq.data.named import told_publicly
from caq.errors import InvalidInput
from caq.families import Bound
from caq.inputs import open_pair
from caq.ledger import Entry
from caq.loading import load_bound
from caq.pipeline import quantize_pair
from caq.recipe import DataRecipe, Recipe, preset
from caq.recipe.mixture import Part, dealt, parts_of
from caq.reproduce.grid import Grid, open_bench
from caq.reproduce.pairs import bundled, recipe_for
from caq.testbed.export import export
from tests.checkpoint.conftest import tiny_tokenizer
from tests.reproduce.shrunk import QUICK


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("mixtures") / "pair"
    export(directory)
    return directory


def load(pair: Path) -> Bound:
    return load_bound(pair / "aligned", torch.float32, torch.device("cpu"))


def recipe_on(text: str, **more: object) -> Recipe:
    few = {"data.samples": 12, "data.length": 24, "learn.end-to-end.validation_samples": 4}
    return preset("cal").with_overrides({"data.text": text, **few, **more})


@pytest.mark.parametrize(
    ("text", "sources"),
    [
        ("wikitext2", ["wikitext2"]),
        ("self:0.5,wikitext2:0.5", ["self", "wikitext2"]),
        ("a,b.txt:1,C:\\data\\c:d.jsonl:.25,self:3.", ["a,b.txt", "C:\\data\\c:d.jsonl", "self"]),
        # Colons and commas alone make no mixture.
        ("notes,2:1", ["notes,2:1"]),
        ("C:\\a,b.txt", ["C:\\a,b.txt"]),
        ("self:1, wikitext2:1", ["self", "wikitext2"]),
    ],
)
def test_what_a_text_names(text: str, sources: list[str]) -> None:
    assert [part.source for part in parts_of(text)] == sources


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("self:0.5,wikitext2", "a share behind each source"),
        ("self:0.5,wikitext2:0.5,", "a share behind each source"),
        ("self:0.5,:0.5", "a source before each share"),
        ("at 10:30, all.txt", "a share behind each source"),
        ("self:0,wikitext2:1", "shares above 0"),
        ("self:1,self:1", "name each source once"),
        ("a/text.txt:1,b/text.txt:1", "name each source once"),
    ],
)
def test_a_mixture_that_cannot_be_told_is_refused(text: str, problem: str) -> None:
    with pytest.raises(InvalidInput, match=rf"^data\.text: should (have )?{problem}"):
        Recipe().with_overrides({"data.text": text})


def test_a_share_of_less_than_a_sample_and_prompts_for_nobody_are_contradictions() -> None:
    with pytest.raises(InvalidInput, match=r"data\.text: the share of c4 is less than one of data\.samples 12"):
        recipe_on("self:99,c4:1")
    with pytest.raises(InvalidInput, match=r"data\.prompts: is read only where data\.text is self"):
        recipe_on("c4:1,wikitext2:1", **{"data.prompts": "asked.txt"})
    assert recipe_on("c4:1,self:1", **{"data.prompts": "asked.txt"}).data.prompts == "asked.txt"


@given(st.integers(1, 300), st.lists(st.integers(1, 50), min_size=1, max_size=6))
def test_samples_are_dealt_by_share_and_none_is_lost(count: int, shares: list[int]) -> None:
    found = dealt(count, [Part("x", str(share)) for share in shares])
    assert sum(found) == count
    assert all(abs(one - count * share / sum(shares)) < 1 for one, share in zip(found, shares, strict=True))


def test_the_largest_remainder_gets_what_is_left() -> None:
    assert dealt(10, [Part("a", "0.55"), Part("b", "0.45")]) == (6, 4)
    assert dealt(7, [Part("a", "1"), Part("b", "2"), Part("c", "1")]) == (2, 3, 2)


def blocks(count: int, value: int, *entries: Entry) -> Calibration:
    return Calibration(torch.full((count, 2), value), {"source": f"part {value}"}, entries)


@pytest.mark.parametrize("seed", range(5))
def test_every_stretch_of_a_mixture_holds_the_parts_by_their_shares(seed: int) -> None:
    found = mixed("m", [blocks(96, 0), blocks(32, 1)], seed)
    assert Counter(found.ids[:, 0].tolist()) == {0: 96, 1: 32}
    for start in range(0, 120):
        assert 1 <= int(found.ids[start : start + 12, 0].sum()) <= 5
    assert torch.equal(found.ids, mixed("m", [blocks(96, 0), blocks(32, 1)], seed).ids)
    assert not torch.equal(found.ids, mixed("m", [blocks(96, 0), blocks(32, 1)], seed + 1).ids)


def test_origin_and_ledger_tell_each_part() -> None:
    short = Entry("data", "fewer-samples", "too few", {})
    found = mixed("m", [blocks(2, 0), blocks(1, 1, short)], 0)
    assert found.entries == (short,)
    assert found.origin == {
        "source": "m",
        "parts": [{"source": "part 0", "samples": 2}, {"source": "part 1", "samples": 1}],
    }


def test_each_part_is_drawn_as_it_would_be_alone(pair: Path, tmp_path: Path) -> None:
    texts = [str(pair / "calibration.txt"), str(pair / "chat.jsonl")]
    checkpoint = inspect(pair / "aligned")

    def drawn(text: str, samples: int = 12) -> Calibration:
        return calibrate(
            checkpoint, "x", recipe_on(text, **{"data.samples": samples}), tmp_path, lambda: load(pair), quiet=True
        )

    whole = drawn(f"{texts[0]}:0.75,{texts[1]}:0.25")
    alone = [drawn(texts[0], 9), drawn(texts[1], 5)]
    rows = {tuple(row) for row in whole.ids.tolist()}
    assert {tuple(row) for row in alone[0].ids.tolist()} < rows
    assert len(rows & {tuple(row) for row in alone[1].ids.tolist()}) == 3
    last = {tuple(row) for row in whole.ids[-4:].tolist()}
    assert last & {tuple(row) for row in alone[0].ids.tolist()}
    assert last & {tuple(row) for row in alone[1].ids.tolist()}


def test_a_record_tells_the_parts_by_name(pair: Path, tmp_path: Path) -> None:
    text = f"self:1,{pair / 'calibration.txt'}:1"
    data = DataRecipe(text=text, prompts=str(pair / "openers.txt"))
    assert data.public().text == "self:1,calibration.txt:1"
    told = {"source": text, "parts": [{"source": "self", "prompts": data.prompts}, {"source": data.sources[1]}]}
    entry = Entry("data", "fewer-samples", f"{data.sources[1]}: has few", {})
    found = told_publicly(Calibration(torch.zeros(1, 2), told, (entry,)), data)
    assert str(pair) not in json.dumps(found.origin)
    assert found.origin["parts"] == [{"source": "self", "prompts": "openers.txt"}, {"source": "calibration.txt"}]
    files: Any = found.origin["files"]
    assert set(files) == {"calibration.txt", "openers.txt"}
    assert found.entries[0].message == "calibration.txt: has few"
    again = Recipe().with_overrides({"data.text": data.public().text})
    assert again.data.sources == ("self", "calibration.txt")


def test_a_mixture_that_is_a_file_too_is_refused(pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:1,b:1").write_text("words")
    with pytest.raises(InvalidInput, match="a:1,b:1: is a mixture, and there is a file of that name"):
        calibrate(inspect(pair / "aligned"), "x", recipe_on("a:1,b:1"), tmp_path, lambda: load(pair), quiet=True)


def test_a_table_looks_into_the_files_of_a_mixture(pair: Path, tmp_path: Path) -> None:
    source = bundled(pair)
    text = f"self:1,{pair / 'calibration.txt'}:1"
    mixed = {"data.text": text, "data.prompts": str(pair / "openers.txt")}
    recipe = recipe_for(source, "cal", {**QUICK, **mixed})
    grid = Grid(tmp_path, source.model, source.base, source.tasks, {"mixed": recipe}, (0,), device="cpu")
    contents = open_bench(grid).contents
    assert contents[str(pair / "calibration.txt")]
    assert contents[str(pair / "openers.txt")]
    assert contents["self"] == ""


def test_quantize_runs_on_a_mixture_to_the_same_bytes_and_finds_it_again(pair: Path, tmp_path: Path) -> None:
    recipe = recipe_for(bundled(pair), "cal").with_overrides(
        {
            "data.text": f"self:0.5,{pair / 'calibration.txt'}:0.5",
            "data.prompts": str(pair / "openers.txt"),
            "data.response_tokens": 6,
            "data.samples": 6,
            "data.length": 16,
            "learn.end-to-end.steps": 1,
            "learn.end-to-end.batch_size": 1,
            "learn.end-to-end.micro_batch_size": 1,
            "learn.end-to-end.validation_samples": 2,
            "learn.end-to-end.keep": "last",
            "quantizer.name": "rtn",
            "quantizer.clip_search": False,
        }
    )
    opened = open_pair(pair / "aligned", pair / "base")
    results = [
        quantize_pair(opened, recipe, tmp_path / name, load=load_bound, cache_dir=tmp_path / cache, quiet=True)
        for name, cache in (("one", "cache"), ("two", "other"))
    ]
    weights = [[file.read_bytes() for file in sorted(one.output.glob("*.safetensors"))] for one in results]
    assert weights[0]
    assert weights[0] == weights[1]
    again = quantize_pair(opened, recipe, tmp_path / "one", load=load_bound, cache_dir=tmp_path / "cache", quiet=True)
    assert again.found
    record = json.loads((again.output / "caq.json").read_text())["data"]
    assert record["source"] == "self:0.5,calibration.txt:0.5"
    assert [part["samples"] for part in record["parts"]] == [3, 3]
    assert record["parts"][0]["max_new_tokens"] == 6
    assert set(record["files"]) == {"calibration.txt", "openers.txt"}


def test_responses_of_chats_are_cut_and_texts_are_not(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    turns = [("user", "question one"), ("assistant", "yes and no and yes"), ("user", "more"), ("assistant", "no")]
    chat = {"messages": [{"role": role, "content": said} for role, said in turns]}
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps(chat))
    kept = tokenizer.decode(tokenizer("yes and no and yes", add_special_tokens=False)["input_ids"][:3])
    assert "yes and no and yes".startswith(kept)
    rendered = f"<s><user>question one</s><assistant>{kept}</s><user>more</s><assistant>no</s>"
    expected = tokenizer(rendered, add_special_tokens=False)["input_ids"]

    def drawn(file: Path, length: int, response_tokens: int | None) -> list[int]:
        data = DataRecipe(text=str(file), samples=1, length=length, response_tokens=response_tokens)
        return token_blocks(data, tokenizer, 0).ids[0].tolist()

    assert drawn(path, len(expected), 3) == expected
    text = tmp_path / "text.jsonl"
    text.write_text(json.dumps({"text": "yes and no and yes"}))
    assert drawn(text, 8, 3) == drawn(text, 8, None)


def test_response_tokens_decide_where_own_responses_are_kept(pair: Path, tmp_path: Path) -> None:
    checkpoint = inspect(pair / "aligned")
    asked = {"data.prompts": str(pair / "openers.txt"), "data.samples": 5}

    def drawn(tokens: int | None) -> Calibration:
        recipe = recipe_on("self", **asked, **{"data.response_tokens": tokens})
        return calibrate(checkpoint, "x", recipe, tmp_path, lambda: load(pair), quiet=True)

    short, whole = drawn(3), drawn(None)
    assert short.origin["max_new_tokens"] == 3
    assert whole.origin["max_new_tokens"] == 24
    kept = [json.loads(file.read_text())["conversations"] for file in sorted(tmp_path.rglob("00000.json"))]
    openings = {tuple(conversation) for conversation in min(kept, key=lambda some: sum(map(len, some)))}
    longer = {tuple(conversation) for conversation in max(kept, key=lambda some: sum(map(len, some)))}
    # The same answers, but for their length.
    assert all(any(one[: len(opening)] == opening for one in longer) for opening in openings)


def test_response_tokens_of_running_text_are_refused(pair: Path, tmp_path: Path) -> None:
    recipe = recipe_on(str(pair / "calibration.txt"), **{"data.response_tokens": 3})
    with pytest.raises(InvalidInput, match=r"data\.response_tokens: .*calibration\.txt is running text"):
        calibrate(inspect(pair / "aligned"), "x", recipe, tmp_path, lambda: load(pair), quiet=True)
