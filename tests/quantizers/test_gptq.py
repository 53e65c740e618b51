"""GPTQ is the paper's, is worth its cost, and fails loudly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from torch import Tensor

from caq.errors import InvalidInput, QuantizationFailed
from caq.quantizers import Gptq, Quantized, RoundToNearest
from caq.quantizers.clip import clipped_parameters
from tests.quantizers.reference import Naive, gram_error, layer, naive_gptq
from tests.support.formats import values_of

CHANNEL = QuantizationArgs(num_bits=4, strategy="channel", symmetric=True)
DAMPING = 0.01


def gptq(
    weight: Tensor, gram: Tensor | None, args: QuantizationArgs, *, clip_steps: int | None = None, **options: Any
) -> Quantized:
    """Quantize from the range, or by a clip search of some steps; scales in float32."""
    clip = {"clip_search": clip_steps is not None, "clip_steps": clip_steps or 1}
    return Gptq.model_validate({"damping": DAMPING, **clip, **options}).quantize(weight, gram, args, torch.float32)


def round_to_nearest(weight: Tensor, args: QuantizationArgs, *, clip_steps: int | None = None) -> Quantized:
    clip = RoundToNearest(clip_search=clip_steps is not None, clip_steps=clip_steps or 1)
    return clip.quantize(weight, None, args, torch.float32)


def grouped(size: int, *, symmetric: bool = True) -> QuantizationArgs:
    return QuantizationArgs(num_bits=4, strategy="group", group_size=size, symmetric=symmetric)


def assert_same(found: Quantized, expected: Naive) -> None:
    rows = expected.decided()
    # Not all: where a block's first weight is its group's most negative, it lies at -7.5 steps, an exact tie.
    assert rows.sum() >= 8
    torch.testing.assert_close(found.codes[rows].double(), expected.codes[rows], rtol=0, atol=0)
    torch.testing.assert_close(found.parameters["scale"][rows].double(), expected.scale[rows], rtol=1e-5, atol=0)
    zero_point = found.parameters.get("zero_point", torch.zeros_like(expected.zero))
    torch.testing.assert_close(zero_point[rows].double(), expected.zero[rows], rtol=0, atol=0)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block_size", [1, 20, 128])
@pytest.mark.parametrize("seed", [0, 1])
def test_per_channel_it_is_the_naive_float64_loop(bits: int, symmetric: bool, block_size: int, seed: int) -> None:
    weight, gram = layer(seed)
    args = QuantizationArgs(num_bits=bits, strategy="channel", symmetric=symmetric)
    expected = naive_gptq(weight, gram, args, damping=DAMPING, block_size=block_size)
    assert_same(gptq(weight, gram, args, block_size=block_size), expected)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [4, 12, 24])
@pytest.mark.parametrize("block_size", [12, 20, 128], ids="block {}".format)
def test_in_groups_it_is_the_naive_float64_loop(symmetric: bool, group: int, block_size: int) -> None:
    weight, gram = layer(2)
    args = grouped(group, symmetric=symmetric)
    expected = naive_gptq(weight, gram, args, damping=DAMPING, block_size=block_size)
    assert_same(gptq(weight, gram, args, block_size=block_size), expected)


def test_groups_take_their_scales_from_the_compensated_weights() -> None:
    weight, gram = layer(2)
    early = round_to_nearest(weight, grouped(12)).parameters["scale"]
    late = gptq(weight, gram, grouped(12), block_size=12).parameters["scale"]
    assert torch.equal(late[:, 0], early[:, 0])
    assert bool((late[:, 1:] != early[:, 1:]).all())


def test_clipped_scales_are_the_searchs_and_the_codes_follow_from_them() -> None:
    weight, gram = layer(3)
    chosen = clipped_parameters(weight, CHANNEL, torch.float32, norm=2.4, steps=30)["scale"][:, 0].double()
    expected = naive_gptq(
        weight, gram, CHANNEL, damping=DAMPING, block_size=128, find=lambda _: (chosen, torch.zeros_like(chosen))
    )
    assert_same(gptq(weight, gram, CHANNEL, clip_steps=30), expected)


def test_codes_are_chosen_for_the_scales_as_they_are_stored_and_in_the_weights_precision() -> None:
    weight, gram = layer(3)
    stored = Gptq(clip_search=False).quantize(weight, gram, CHANNEL, torch.bfloat16)
    scale = stored.parameters["scale"][:, 0]
    assert scale.dtype == torch.bfloat16
    chosen = scale.double(), torch.zeros(len(scale), dtype=torch.float64)
    expected = naive_gptq(weight, gram, CHANNEL, damping=DAMPING, block_size=128, find=lambda _: chosen)
    assert_same(stored, expected)


@pytest.mark.parametrize("args", [CHANNEL, grouped(12), grouped(12, symmetric=False)], ids=str)
@pytest.mark.parametrize("clip_steps", [None, 20], ids=["range", "clip"])
@pytest.mark.parametrize("seed", range(4))
def test_its_output_error_is_at_most_round_to_nearests(
    args: QuantizationArgs, clip_steps: int | None, seed: int
) -> None:
    weight, gram = layer(seed)
    nearest = values_of(round_to_nearest(weight, args, clip_steps=clip_steps))
    compensated = values_of(gptq(weight, gram, args, clip_steps=clip_steps))
    assert gram_error(weight, compensated, gram) <= gram_error(weight, nearest, gram)


def test_with_uncorrelated_inputs_there_is_nothing_to_compensate() -> None:
    weight, _ = layer(4)
    nearest = round_to_nearest(weight, CHANNEL)
    assert torch.equal(gptq(weight, 3 * torch.eye(48), CHANNEL).codes, nearest.codes)


@pytest.mark.parametrize("args", [CHANNEL, grouped(12)], ids=str)
def test_stacked_layers_come_out_as_each_alone(args: QuantizationArgs) -> None:
    gram = layer(5)[1]
    weights = [layer(seed, rows)[0] for seed, rows in ((5, 24), (6, 7), (7, 7))]
    stacked = gptq(torch.cat(weights), gram, args, block_size=20, clip_steps=10)
    parts = stacked.codes.split([24, 7, 7]), stacked.parameters["scale"].split([24, 7, 7])
    for weight, codes, scale in zip(weights, *parts, strict=True):
        alone = gptq(weight, gram, args, block_size=20, clip_steps=10)
        assert torch.equal(alone.codes, codes)
        torch.testing.assert_close(alone.parameters["scale"], scale, rtol=1e-6, atol=0)


def test_inputs_that_are_never_active_are_rounded_to_nearest_and_change_no_other() -> None:
    weight, gram = layer(8)
    weight[:, 40] = 4.0
    gram[[5, 6], :] = 0
    gram[:, [5, 6]] = 0
    found = gptq(weight, gram, CHANNEL)
    nearest = round_to_nearest(weight, CHANNEL)
    assert found.entries == ()
    assert torch.equal(found.codes[:, 5:7], nearest.codes[:, 5:7])
    assert not torch.equal(found.codes, nearest.codes)

    weight[:, 5:7] = -weight[:, 5:7]
    alive = [i for i in range(48) if i not in (5, 6)]
    assert torch.equal(gptq(weight, gram, CHANNEL).codes[:, alive], found.codes[:, alive])


def test_a_layer_that_saw_no_input_at_all_is_rounded_to_nearest() -> None:
    weight, _ = layer(8)
    found = gptq(weight, torch.zeros(48, 48), CHANNEL)
    assert torch.equal(found.codes, round_to_nearest(weight, CHANNEL).codes)


def test_on_a_singular_gram_damping_escalates_into_the_ledger() -> None:
    weight, _ = layer(9)
    # Twice the same token: rank one, and damping far below float64's precision.
    gram = torch.ones(48, 48)
    found = gptq(weight, gram, CHANNEL, damping=1e-18)
    assert [entry.event for entry in found.entries] == ["damping-escalated"] * len(found.entries)
    tried = [entry.details["damping"] for entry in found.entries]
    assert tried == pytest.approx([1e-18 * 10**step for step in range(len(tried))])
    assert "trying 1e-17" in found.entries[0].message
    enough = gptq(weight, gram, CHANNEL, damping=1e-18 * 10 ** len(tried))
    assert enough.entries == ()
    assert torch.equal(found.codes, enough.codes)


def test_an_indefinite_gram_gets_as_much_damping_as_it_needs_and_no_more() -> None:
    weight, gram = layer(9)
    gram -= 0.05 * gram.diagonal().mean() * torch.eye(48)
    found = gptq(weight, gram, CHANNEL)
    assert [entry.details for entry in found.entries] == [{"damping": 0.01}]
    torch.testing.assert_close(found.codes, gptq(weight, gram, CHANNEL, damping=0.1).codes)


@pytest.mark.parametrize(
    "gram", [-torch.eye(48), torch.full((48, 48), torch.nan), torch.full((48, 48), torch.inf)], ids=["<0", "nan", "inf"]
)
def test_a_hopeless_gram_fails_instead_of_being_rounded_to_nearest(gram: torch.Tensor) -> None:
    weight, _ = layer(9)
    with pytest.raises(QuantizationFailed, match=r"48 inputs.*even with damping 1;.*quantizer\.max_damping"):
        gptq(weight, gram, CHANNEL)


def test_the_limit_of_the_damping_is_kept() -> None:
    weight, gram = layer(9)
    gram -= 0.05 * gram.diagonal().mean() * torch.eye(48)
    with pytest.raises(QuantizationFailed, match=r"even with damping 0\.01"):
        gptq(weight, gram, CHANNEL, max_damping=0.05)


def test_it_needs_a_gram() -> None:
    with pytest.raises(ValueError, match="needs the Gram matrix"):
        gptq(layer(0)[0], None, CHANNEL)


def test_a_group_size_that_does_not_divide_is_an_error() -> None:
    with pytest.raises(InvalidInput, match="group size 32 does not divide 48 features"):
        gptq(*layer(0), grouped(32))


def test_the_weight_given_is_left_alone() -> None:
    weight, gram = layer(0)
    before = weight.clone(), gram.clone()
    gptq(weight, gram, CHANNEL, block_size=20)
    assert torch.equal(weight, before[0])
    assert torch.equal(gram, before[1])
