"""Checkpoints that CAQ 0.1 wrote, kept whole in tests/checkpoints/v01, load and compute what 0.1 computed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from caq.checkpoint.manifest import verify
from caq.errors import InvalidInput
from caq.export.legacy import read_legacy
from caq.loading import load

V01 = Path(__file__).parents[1] / "checkpoints" / "v01"
#: Of the same ids, by 0.1's own `caq.load`, float32.
EXPECTED = load_file(V01 / "logits.safetensors")
NAMES = ["w4a4", "w4a16", "kv-cache"]


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_checkpoint_of_0_1_gives_its_logits(name: str) -> None:
    assert verify(V01 / name) == ()
    found = load(V01 / name, torch.float32)(EXPECTED["ids"]).logits
    # Equal on the machine that wrote them; elsewhere a sum in another order may round an activation the other way.
    assert relative_error(found, EXPECTED[name]) < 0.02
    plain = AutoModelForCausalLM.from_pretrained(V01 / name, dtype=torch.float32)(EXPECTED["ids"]).logits
    assert relative_error(plain, EXPECTED[name]) > 0.2


def test_every_step_of_0_1_is_found_from_its_recipe_and_configuration() -> None:
    online = read_legacy(V01 / "kv-cache")
    assert online is not None
    assert [(step.path, step.location.value) for step in online.steps] == [
        ("mlp.down_proj", "input"),
        ("self_attn.v_proj", "output"),
        ("self_attn", "q_attn"),
        ("self_attn", "k_cache"),
        ("self_attn", "k_cache"),
    ]


def test_a_directory_that_caq_did_not_write_has_nothing_online(tmp_path: Path) -> None:
    # llm-compressor leaves a recipe.yaml of its own.
    (tmp_path / "recipe.yaml").write_text("quant_stage: {}\n")
    assert read_legacy(tmp_path) is None


def test_a_later_checkpoint_without_its_online_file_is_refused(tmp_path: Path) -> None:
    shutil.copytree(V01 / "kv-cache", tmp_path / "later")
    (tmp_path / "later" / "recipe.yaml").write_text("transforms: [{name: down-hadamard}]\n")
    with pytest.raises(InvalidInput, match=r"online\.json is missing"):
        load(tmp_path / "later")


@pytest.mark.parametrize("recipe", ["transforms: [", "a: 1\n", "transforms: {x: 1}\n", None])
def test_a_damaged_recipe_is_named(recipe: str | None, tmp_path: Path) -> None:
    shutil.copytree(V01 / "kv-cache", tmp_path / "copy")
    (tmp_path / "copy" / "recipe.yaml").unlink()
    if recipe is not None:
        (tmp_path / "copy" / "recipe.yaml").write_text(recipe)
    with pytest.raises(InvalidInput, match=r"recipe\.yaml: cannot be read"):
        read_legacy(tmp_path / "copy")
