"""`data.text: self`: what the bundled aligned model says to prompts, sampled, kept and packed."""

from __future__ import annotations

import json
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from caq.checkpoint.inspect import fingerprint, inspect
from caq.data.prompts import calibration_prompts
from caq.data.responses import Responder, Sampling, responder, response_blocks
from caq.errors import InvalidInput
from caq.families import Bound
from caq.inputs import open_pair
from caq.loading import load_bound, load_tokenizer
from caq.pipeline import quantize_pair
from caq.recipe import DataRecipe, Recipe
from caq.reproduce.pairs import bundled, recipe_for
from caq.testbed.export import export

DEEDS = ("bake a cake", "plant a tree", "read a story", "clean the room", "paint a fence", "write a letter")
FEW = Sampling(max_new_tokens=24, batch=4, draws=6)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("responses") / "pair"
    export(directory)
    (directory / "asked.txt").write_text("".join(f"How do I {deed}?\n\n" for deed in DEEDS))
    return directory


def load(pair: Path) -> Bound:
    return load_bound(pair / "aligned", torch.float32, torch.device("cpu"))


@pytest.fixture(scope="module")
def aligned(pair: Path) -> Responder:
    checkpoint = inspect(pair / "aligned")
    return responder(checkpoint, fingerprint(checkpoint), load_tokenizer(checkpoint.path), lambda: load(pair))


@pytest.fixture(scope="module")
def data(pair: Path) -> DataRecipe:
    return DataRecipe(text="self", prompts=str(pair / "asked.txt"), samples=4, length=32)


def silent(aligned: Responder) -> Responder:
    def refuse() -> Bound:
        raise AssertionError("the model was loaded")

    return replace(aligned, load=refuse)


def test_the_seed_decides_and_torchs_own_generator_is_left_alone(
    aligned: Responder, data: DataRecipe, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, again, other = (
        response_blocks(aligned, data, seed, tmp_path / name, FEW, quiet=True).ids
        for seed, name in ((1, "one"), (1, "again"), (2, "other"))
    )
    assert torch.equal(torch.rand(3), expected)
    assert one.shape == (4, 32)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_a_model_that_others_share_keeps_its_own_generation_config(
    aligned: Responder, data: DataRecipe, pair: Path, tmp_path: Path
) -> None:
    bound = load(pair)
    own, before = bound.model.generation_config, bound.model.generation_config.to_dict()
    response_blocks(replace(aligned, load=lambda: bound), data, 0, tmp_path, FEW, quiet=True)
    assert bound.model.generation_config is own
    assert own.to_dict() == before


def test_conversations_are_a_prompt_through_the_template_and_an_answer_that_ends(
    aligned: Responder, data: DataRecipe, tmp_path: Path
) -> None:
    found = response_blocks(aligned, data, 0, tmp_path, FEW, quiet=True)
    rounds = (json.loads(file.read_text()) for file in sorted(tmp_path.rglob("*.json")))
    conversations = [ids for kept in rounds for ids in kept["conversations"]]
    prompts = {tuple(aligned.tokenizer(f"<|user|>How do I {deed}?<|end|><|assistant|>")["input_ids"]) for deed in DEEDS}
    (end,) = aligned.ends
    for ids in conversations:
        opening = next(prompt for prompt in prompts if tuple(ids[: len(prompt)]) == prompt)
        answer = ids[len(opening) :]
        assert 1 <= len(answer) <= FEW.max_new_tokens
        assert answer.count(end) == (answer[-1] == end)
        assert answer[-1] == end or len(answer) == FEW.max_new_tokens
    used = found.origin["documents"]
    assert isinstance(used, int)
    packed = [token for ids in conversations[:used] for token in ids]
    windows = {tuple(packed[start : start + 32]) for start in range(len(packed) - 31)}
    assert {tuple(block) for block in found.ids.tolist()} <= windows


def test_kept_rounds_are_used_again_and_a_stopped_run_goes_on(
    aligned: Responder, data: DataRecipe, tmp_path: Path
) -> None:
    data = data.model_copy(update={"samples": 10})
    whole = response_blocks(aligned, data, 0, tmp_path, FEW, quiet=True)
    assert torch.equal(response_blocks(silent(aligned), data, 0, tmp_path, FEW, quiet=True).ids, whole.ids)
    fewer = data.model_copy(update={"samples": 2})
    assert len(response_blocks(silent(aligned), fewer, 0, tmp_path, FEW, quiet=True).ids) == 2
    last = max(tmp_path.rglob("*.json"))
    assert last.name != "00000.json"
    last.unlink()
    assert torch.equal(response_blocks(aligned, data, 0, tmp_path, FEW, quiet=True).ids, whole.ids)
    with pytest.raises(AssertionError, match="the model was loaded"):
        response_blocks(silent(aligned), data, 1, tmp_path, FEW, quiet=True)


def test_prompts_are_answered_anew_up_to_a_bound_and_then_the_data_fall_short(
    aligned: Responder, data: DataRecipe, tmp_path: Path
) -> None:
    many = data.model_copy(update={"samples": 100})
    short = replace(FEW, max_new_tokens=4, draws=3)
    with pytest.raises(InvalidInput, match=r"self: has \d+ blocks .* 100 were asked for; give more prompts"):
        response_blocks(aligned, many, 0, tmp_path, short, quiet=True)
    allowed = many.model_copy(update={"allow_short": True})
    found = response_blocks(silent(aligned), allowed, 0, tmp_path, short, quiet=True)
    assert found.origin["documents"] == 3 * len(DEEDS)
    assert [entry.event for entry in found.entries] == ["fewer-samples"]
    answers = [tuple(ids) for file in tmp_path.rglob("*.json") for ids in json.loads(file.read_text())["conversations"]]
    assert len(set(answers)) > len(DEEDS)


def test_what_cannot_be_answered_is_refused_before_the_model_is_loaded(
    aligned: Responder, data: DataRecipe, tmp_path: Path
) -> None:
    bare = load_tokenizer(aligned.tokenizer.name_or_path)
    bare.chat_template = None
    with pytest.raises(InvalidInput, match="self: the tokenizer has no chat template"):
        response_blocks(replace(silent(aligned), tokenizer=bare), data, 0, tmp_path)
    with pytest.raises(
        InvalidInput, match=r"asked\.txt: 'How do I bake a cake\?' has \d+ tokens and the model reads 5"
    ):
        response_blocks(replace(silent(aligned), context=5), data, 0, tmp_path)
    with pytest.raises(InvalidInput, match=r"no\.txt"):
        response_blocks(silent(aligned), data.model_copy(update={"prompts": "no.txt"}), 0, tmp_path)


def test_a_context_that_config_json_leaves_out_is_the_family_s_default(pair: Path, tmp_path: Path) -> None:
    shutil.copytree(pair / "aligned", tmp_path / "aligned")
    file = tmp_path / "aligned" / "config.json"
    config = json.loads(file.read_text())
    del config["max_position_embeddings"]
    file.write_text(json.dumps(config))
    checkpoint = inspect(tmp_path / "aligned")
    found = responder(checkpoint, "", load_tokenizer(checkpoint.path), lambda: load(pair))
    assert found.context == type(load(pair).model.config)().max_position_embeddings


def test_prompts_come_from_lines_from_objects_or_with_the_package(pair: Path, tmp_path: Path) -> None:
    bundled = calibration_prompts(None)
    assert len(bundled) == len(set(bundled)) >= 200
    assert calibration_prompts(pair / "asked.txt") == tuple(f"How do I {deed}?" for deed in DEEDS)
    assert calibration_prompts(pair / "prompts.jsonl")[0].endswith("?")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "fine"}\n{"text": "x"}\n{"prompt": " "}\n[')
    with pytest.raises(InvalidInput) as caught:
        calibration_prompts(tmp_path / "bad.jsonl")
    assert len(caught.value.problems) == 3
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(InvalidInput, match="is empty; give one prompt a line"):
        calibration_prompts(tmp_path / "empty.txt")


def test_quantize_calibrates_on_the_models_own_responses_and_says_so(pair: Path, tmp_path: Path) -> None:
    recipe = recipe_for(bundled(pair), "cal").with_overrides(
        {
            "data.text": "self",
            "data.prompts": str(pair / "asked.txt"),
            "data.samples": 4,
            "data.length": 16,
            "learn.end-to-end.steps": 1,
            "learn.end-to-end.batch_size": 1,
            "learn.end-to-end.micro_batch_size": 1,
            "learn.end-to-end.validation_samples": 1,
            "quantizer.name": "rtn",
            "quantizer.clip_search": False,
        }
    )
    alive: list[weakref.ref[Any]] = []

    def watched(*arguments: Any) -> Bound:
        assert all(model() is None for model in alive)
        bound = load_bound(*arguments)
        alive.append(weakref.ref(bound.model))
        return bound

    opened = open_pair(pair / "aligned", pair / "base")
    for loads in (4, 5):  # the second run finds responses and targets, and loads the student only
        out, cache = tmp_path / f"out-{loads}", tmp_path / "cache"
        result = quantize_pair(opened, recipe, out, load=watched, cache_dir=cache, quiet=True)
        assert len(alive) == loads
    record = json.loads((result.output / "caq.json").read_text())
    assert record["data"] == result.data
    assert record["data"]["source"] == "self"
    assert record["data"]["generated_by"] == "the aligned model"
    (directory,) = (tmp_path / "cache" / "responses").iterdir()
    assert list(directory.glob("*.json"))


def test_prompts_for_another_text_are_a_contradiction() -> None:
    with pytest.raises(InvalidInput, match=r"data\.prompts: is read only where data\.text is self"):
        Recipe().with_overrides({"data.prompts": "asked.txt", "data.text": "wikitext2"})
    assert Recipe().with_overrides({"data.prompts": "asked.txt", "data.text": "self"}).data.prompts == "asked.txt"
