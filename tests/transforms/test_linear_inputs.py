"""Maps in front of every linear, through a whole run: they are stored, and only `caq.load` computes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from caq.loading import load
from caq.transforms import TRANSFORMS
from caq.transforms.linear_inputs import linear_inputs
from tests.support.tiny import tiny_model
from tests.support.transforming import IDS, bound_to, plan_of, relative_error
from tests.test_pipeline import run

ONLINE = ("duquant", "kronecker-affine")


def test_every_linear_is_a_reader_once() -> None:
    bound = bound_to(tiny_model("llama"))
    read = [(one.block, reader.path) for one in linear_inputs(bound) for reader in one.readers]
    assert len(read) == len(set(read)) == 7 * bound.shape.layers


@pytest.mark.parametrize("name", ONLINE)
def test_each_activation_has_one_map_that_runs_where_it_is_written_or_read(name: str) -> None:
    plan = plan_of(bound_to(tiny_model("llama")), [TRANSFORMS[name]()])
    places = [(step.path, step.location.value) for step in plan.steps(plan.operators({})) if step.index == 0]
    norms = [("input_layernorm", "output"), ("post_attention_layernorm", "output")]
    assert sorted(places) == sorted([*norms, ("self_attn.o_proj", "input"), ("mlp.down_proj", "input")])


@pytest.mark.parametrize("transforms", [["duquant"], ["kronecker-affine"], ["residual-rotation", *ONLINE]], ids=str)
def test_a_whole_run_stores_them_and_plain_transformers_computes_something_else(
    transforms: list[str], tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"scheme.preset": "W8A8", "learn": [], "transforms": transforms}
    result = run(tmp_path, "llama", **settings)
    assert result.preserved < 1e-5
    aligned = load(tmp_path / "aligned", torch.float32)(IDS).logits
    assert relative_error(load(result.output, torch.float32)(IDS).logits, aligned) < 0.1
    plain = AutoModelForCausalLM.from_pretrained(result.output, dtype=torch.float32)
    assert relative_error(plain(IDS).logits, aligned) > 0.5
