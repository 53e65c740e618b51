"""The bundled pair as every command sees it: exported, read back, and showing what a quantizer has to keep."""

from __future__ import annotations

import json
import shutil
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from benchmarks.bundled_pair.check import measure, shortfalls
from benchmarks.bundled_pair.data import write_data

from caq.checkpoint.inspect import inspect
from caq.checkpoint.pair import check_pair
from caq.errors import InvalidInput
from caq.loading import load, load_tokenizer
from caq.testbed.export import export


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pair")
    export(directory / "pair")
    return directory / "pair"


def test_the_pair_takes_at_most_12_megabytes_of_the_package() -> None:
    sizes = [path.stat().st_size for path in Path(str(files("caq.testbed") / "pair")).rglob("*") if path.is_file()]
    assert 0 < sum(sizes) <= 12e6


def test_what_is_exported_is_a_pair_of_sharded_bfloat16_checkpoints(exported: Path) -> None:
    aligned, base = inspect(exported / "aligned"), inspect(exported / "base")
    check_pair(aligned, base)
    assert {tensor.dtype for tensor in (*aligned.tensors.values(), *base.tensors.values())} == {"BF16"}
    assert len(list((exported / "aligned").glob("*.safetensors"))) > 1


def test_exporting_over_other_files_is_refused_and_what_was_stopped_goes_on(exported: Path, tmp_path: Path) -> None:
    for name in ("aligned/mine.txt", "base", "facts.jsonl"):
        (tmp_path / "others" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "others" / name).write_text("mine")
    with pytest.raises(InvalidInput, match="aligned exists") as caught:
        export(tmp_path / "others")
    assert len(caught.value.problems) == len(list((tmp_path / "others").iterdir())) == 3
    shutil.copytree(exported / "base", tmp_path / "stopped" / "base")
    (tmp_path / "stopped" / "base" / "config.json").rename(
        tmp_path / "stopped" / "base" / ".config.json.partial-0a1b2c3d"
    )
    export(tmp_path / "stopped")
    written = [sorted(path.relative_to(root) for path in root.rglob("*")) for root in (exported, tmp_path / "stopped")]
    assert written[0] == written[1]


def test_the_data_files_have_the_fields_that_are_documented(exported: Path) -> None:
    first = {
        name: json.loads((exported / name).read_text(encoding="utf-8").splitlines()[0])
        for name in ("safety.jsonl", "facts.jsonl", "prompts.jsonl")
    }
    assert (
        set(first["safety.jsonl"]) == set(first["facts.jsonl"]) == {"id", "category", "question", "options", "answer"}
    )
    assert set(first["prompts.jsonl"]) == {"prompt", "harmful"}


def test_the_data_are_what_the_world_s_generator_writes(exported: Path, tmp_path: Path) -> None:
    write_data(tmp_path)
    for path in tmp_path.iterdir():
        assert (exported / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_the_pair_shows_what_it_must(exported: Path) -> None:
    found = measure(exported, quiet=True)
    assert shortfalls(found) == ()


def test_a_pair_that_lost_its_alignment_is_told_so() -> None:
    aligned = {"safety/option-text": 0.5, "refusal": 0.1, "helpfulness": 0.5, "facts": 0.5}
    assert len(shortfalls({"aligned": aligned, "base": {**aligned, "facts": 0.9}})) == 5


def test_block_inputs_have_outlier_channels_as_large_models_have(exported: Path) -> None:
    model, tokenizer = load(exported / "aligned", torch.float32), load_tokenizer(exported / "aligned")
    ratios: list[float] = []

    def record(_: torch.nn.Module, __: object, output: torch.Tensor) -> None:
        channels = output.flatten(0, 1).square().mean(0).sqrt()
        ratios.append(float(channels.max() / channels.median()))

    for layer in model.model.layers:
        layer.input_layernorm.register_forward_hook(record)
        layer.post_attention_layernorm.register_forward_hook(record)
    ids = torch.tensor(tokenizer((exported / "heldout.txt").read_text(encoding="utf-8")).input_ids[:256])[None]
    with torch.no_grad():
        model(ids)
    assert len(ratios) == 8
    assert min(ratios) > 4
    assert max(ratios) > 25
