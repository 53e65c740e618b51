"""Group sizes: what divides a model's inputs, what is taken where the preset's does not, and what is refused."""

from __future__ import annotations

import pytest
from compressed_tensors.quantization import preset_name_to_scheme

from caq.families import find_family
from caq.numerics.groups import dividing_groups, largest_group
from caq.numerics.scheme import regrouped, resolve, undivided
from caq.recipe import SchemeRecipe
from tests.support.tiny import tiny_model

W4A16 = SchemeRecipe(preset="W4A16")


@pytest.mark.parametrize(
    ("model", "inputs", "size"),
    [
        ("LLaMA 2 7B", (4096, 11008), 128),
        ("SmolLM2 135M", (576, 1536), 64),
        ("SmolLM2 360M", (960, 2560), 64),
        ("Qwen2 0.5B", (896, 4864), 128),
        ("sizes of 32", (96, 160), 32),
        ("no size of a kernel", (48, 144), 48),
        ("whole channels only", (40, 56), None),
    ],
)
def test_the_largest_group_that_engines_serve_and_that_divides_is_taken(
    model: str, inputs: tuple[int, ...], size: int | None
) -> None:
    assert largest_group(128, inputs) == size


def test_a_smaller_group_than_the_preset_s_is_never_made_larger() -> None:
    assert largest_group(32, (4096,)) == 32
    assert largest_group(32, (48,)) == 24


def test_every_dividing_size_is_named() -> None:
    assert dividing_groups((576, 1536)) == [192, 96, 64, 48, 32, 24, 16]
    assert dividing_groups((60, 100)) == [20]
    assert dividing_groups((9, 100)) == []


def test_groups_that_divide_leave_the_preset_as_it_is() -> None:
    inputs = {4096: ("q_proj",), 11008: ("down_proj",)}
    assert resolve(W4A16, 128, inputs) == resolve(W4A16, 128)
    assert resolve(W4A16, 128).linear == preset_name_to_scheme("W4A16", ["Linear"])
    assert regrouped(W4A16, inputs) == ()


def test_groups_that_do_not_divide_are_told_with_the_linears() -> None:
    inputs = {576: ("q_proj", "o_proj"), 1536: ("down_proj",)}
    weights = resolve(W4A16, 64, inputs).linear.weights
    assert (weights.strategy, weights.group_size, weights.num_bits, weights.symmetric) == ("group", 64, 4, True)
    (entry,) = regrouped(W4A16, inputs)
    told = "groups of 128 do not divide the inputs of q_proj (576), o_proj (576); all weights are quantized in groups"
    assert entry.message == f"{told} of 64"
    assert entry.details == {"asked": 128, "taken": 64, "linears": {"q_proj": 576, "o_proj": 576}}
    (entry,) = regrouped(W4A16, {40: ("q_proj",), 56: ("down_proj",)})
    assert entry.message.endswith("all weights are quantized by channel")
    weights = resolve(W4A16, 64, (40, 56)).linear.weights
    assert (weights.strategy, weights.group_size) == ("channel", None)


@pytest.mark.parametrize("preset", ["W4A16", "W4A4", "W8A8"])
@pytest.mark.parametrize("size", [64, "channel"])
def test_a_size_that_was_chosen_is_taken(preset: str, size: int | str) -> None:
    recipe, inputs = SchemeRecipe(preset=preset, group_size=size), {576: ("q_proj",)}
    weights = resolve(recipe, 64, inputs).linear.weights
    assert (weights.strategy, weights.group_size) == (("group", 64) if size == 64 else ("channel", None))
    assert undivided(recipe, inputs) == []
    assert regrouped(recipe, inputs) == ()


def test_a_size_that_was_chosen_and_does_not_divide_is_refused_with_those_that_do() -> None:
    recipe = SchemeRecipe(preset="W4A16", group_size=128)
    (problem,) = undivided(recipe, {576: ("q_proj", "k_proj"), 1536: ("down_proj",)})
    assert problem == (
        "scheme.group_size: groups of 128 do not divide the 576 inputs of q_proj, k_proj; "
        "choose 192, 96, 64, 48, 32, 24, 16 or channel"
    )
    assert undivided(recipe, {9: ("q_proj",)})[0].endswith("; choose channel")


def test_a_family_tells_how_many_inputs_its_linears_have() -> None:
    config = tiny_model("llama").config
    assert find_family("llama").inputs(config) == {
        48: (*(f"self_attn.{name}_proj" for name in "qkvo"), "mlp.gate_proj", "mlp.up_proj"),
        56: ("mlp.down_proj",),
    }
