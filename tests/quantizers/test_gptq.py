"""GPTQ is the paper's, is worth its cost, and fails loudly."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs

from caq.errors import InvalidInput, QuantizationFailed
from caq.quantizers import Quantized
from caq.quantizers.clip import ClipSearch
from caq.quantizers.gptq import Gptq
from caq.quantizers.rtn import RoundToNearest
from tests.quantizers.reference import Naive, gram_error, layer, naive_gptq

CHANNEL = QuantizationArgs(num_bits=4, strategy="channel", symmetric=True)
DAMPING = 0.01


def gptq(block_size: int = 128, clip: ClipSearch | None = None, damping: float = DAMPING) -> Gptq:
    return Gptq(torch.float32, clip, block_size, damping)


def grouped(size: int, *, symmetric: bool = True) -> QuantizationArgs:
    return QuantizationArgs(num_bits=4, strategy="group", group_size=size, symmetric=symmetric)


def assert_same(found: Quantized, expected: Naive) -> None:
    rows = expected.decided()
    # Not all: where a block's first weight is its group's most negative, it lies at -7.5 steps, an exact tie.
    assert rows.sum() >= 8
    torch.testing.assert_close(found.codes[rows].double(), expected.codes[rows], rtol=0, atol=0)
    torch.testing.assert_close(found.scale[rows].double(), expected.scale[rows], rtol=1e-5, atol=0)
    torch.testing.assert_close(found.zero_point[rows].double(), expected.zero[rows], rtol=0, atol=0)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block_size", [1, 20, 128])
@pytest.mark.parametrize("seed", [0, 1])
def test_per_channel_it_is_the_naive_float64_loop(bits: int, symmetric: bool, block_size: int, seed: int) -> None:
    weight, gram = layer(seed)
    args = QuantizationArgs(num_bits=bits, strategy="channel", symmetric=symmetric)
    expected = naive_gptq(weight, gram, args, damping=DAMPING, block_size=block_size)
    assert_same(gptq(block_size).quantize(weight, gram, args), expected)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [4, 12, 24])
@pytest.mark.parametrize("block_size", [12, 20, 128], ids="block {}".format)
def test_in_groups_it_is_the_naive_float64_loop(symmetric: bool, group: int, block_size: int) -> None:
    weight, gram = layer(2)
    args = grouped(group, symmetric=symmetric)
    expected = naive_gptq(weight, gram, args, damping=DAMPING, block_size=block_size)
    assert_same(gptq(block_size).quantize(weight, gram, args), expected)


def test_groups_take_their_scales_from_the_compensated_weights() -> None:
    weight, gram = layer(2)
    early = RoundToNearest(torch.float32, None).quantize(weight, None, grouped(12)).scale
    late = gptq(12).quantize(weight, gram, grouped(12)).scale
    assert torch.equal(late[:, 0], early[:, 0])
    assert bool((late[:, 1:] != early[:, 1:]).all())


def test_clipped_scales_are_the_searchs_and_the_codes_follow_from_them() -> None:
    weight, gram = layer(3)
    clip = ClipSearch(norm=2.4, steps=30)
    scale, _ = clip.parameters(weight, CHANNEL, torch.float32)
    chosen = scale[:, 0].double()
    expected = naive_gptq(
        weight, gram, CHANNEL, damping=DAMPING, block_size=128, find=lambda _: (chosen, torch.zeros_like(chosen))
    )
    assert_same(gptq(clip=clip).quantize(weight, gram, CHANNEL), expected)


@pytest.mark.parametrize("args", [CHANNEL, grouped(12), grouped(12, symmetric=False)], ids=str)
@pytest.mark.parametrize("clip", [None, ClipSearch(steps=20)], ids=["range", "clip"])
@pytest.mark.parametrize("seed", range(4))
def test_its_output_error_is_at_most_round_to_nearests(
    args: QuantizationArgs, clip: ClipSearch | None, seed: int
) -> None:
    weight, gram = layer(seed)
    nearest = RoundToNearest(torch.float32, clip).quantize(weight, None, args).weight()
    compensated = gptq(clip=clip).quantize(weight, gram, args).weight()
    assert gram_error(weight, compensated, gram) <= gram_error(weight, nearest, gram)


def test_with_uncorrelated_inputs_there_is_nothing_to_compensate() -> None:
    weight, _ = layer(4)
    nearest = RoundToNearest(torch.float32, None).quantize(weight, None, CHANNEL)
    assert torch.equal(gptq().quantize(weight, 3 * torch.eye(48), CHANNEL).codes, nearest.codes)


@pytest.mark.parametrize("args", [CHANNEL, grouped(12)], ids=str)
def test_stacked_layers_come_out_as_each_alone(args: QuantizationArgs) -> None:
    gram = layer(5)[1]
    weights = [layer(seed, rows)[0] for seed, rows in ((5, 24), (6, 7), (7, 7))]
    stacked = gptq(20, ClipSearch(steps=10)).quantize(torch.cat(weights), gram, args)
    parts = stacked.codes.split([24, 7, 7]), stacked.scale.split([24, 7, 7])
    for weight, codes, scale in zip(weights, *parts, strict=True):
        alone = gptq(20, ClipSearch(steps=10)).quantize(weight, gram, args)
        assert torch.equal(alone.codes, codes)
        torch.testing.assert_close(alone.scale, scale, rtol=1e-6, atol=0)


def test_inputs_that_are_never_active_are_rounded_to_nearest_and_change_no_other() -> None:
    weight, gram = layer(8)
    weight[:, 40] = 4.0
    gram[[5, 6], :] = 0
    gram[:, [5, 6]] = 0
    found = gptq().quantize(weight, gram, CHANNEL)
    nearest = RoundToNearest(torch.float32, None).quantize(weight, None, CHANNEL)
    assert found.entries == ()
    assert torch.equal(found.codes[:, 5:7], nearest.codes[:, 5:7])
    assert not torch.equal(found.codes, nearest.codes)

    weight[:, 5:7] = -weight[:, 5:7]
    alive = [i for i in range(48) if i not in (5, 6)]
    assert torch.equal(gptq().quantize(weight, gram, CHANNEL).codes[:, alive], found.codes[:, alive])


def test_a_layer_that_saw_no_input_at_all_is_rounded_to_nearest() -> None:
    weight, _ = layer(8)
    found = gptq().quantize(weight, torch.zeros(48, 48), CHANNEL)
    assert torch.equal(found.codes, RoundToNearest(torch.float32, None).quantize(weight, None, CHANNEL).codes)


def test_on_a_singular_gram_damping_escalates_into_the_ledger() -> None:
    weight, _ = layer(9)
    # Twice the same token: rank one, and damping far below float64's precision.
    gram = torch.ones(48, 48)
    found = gptq(damping=1e-18).quantize(weight, gram, CHANNEL)
    assert [entry.event for entry in found.entries] == ["damping-escalated"] * len(found.entries)
    tried = [entry.details["damping"] for entry in found.entries]
    assert tried == pytest.approx([1e-18 * 10**step for step in range(len(tried))])
    assert "trying 1e-17" in found.entries[0].message
    enough = gptq(damping=1e-18 * 10 ** len(tried)).quantize(weight, gram, CHANNEL)
    assert enough.entries == ()
    assert torch.equal(found.codes, enough.codes)


def test_an_indefinite_gram_gets_as_much_damping_as_it_needs_and_no_more() -> None:
    weight, gram = layer(9)
    gram -= 0.05 * gram.diagonal().mean() * torch.eye(48)
    found = gptq().quantize(weight, gram, CHANNEL)
    assert [entry.details for entry in found.entries] == [{"damping": 0.01}]
    torch.testing.assert_close(found.codes, gptq(damping=0.1).quantize(weight, gram, CHANNEL).codes)


@pytest.mark.parametrize(
    "gram", [-torch.eye(48), torch.full((48, 48), torch.nan), torch.full((48, 48), torch.inf)], ids=["<0", "nan", "inf"]
)
def test_a_hopeless_gram_fails_instead_of_being_rounded_to_nearest(gram: torch.Tensor) -> None:
    weight, _ = layer(9)
    with pytest.raises(QuantizationFailed, match=r"48 inputs.*even with damping 1;.*quantizer\.max_damping"):
        gptq().quantize(weight, gram, CHANNEL)


def test_the_limit_of_the_damping_is_kept() -> None:
    weight, gram = layer(9)
    gram -= 0.05 * gram.diagonal().mean() * torch.eye(48)
    with pytest.raises(QuantizationFailed, match=r"even with damping 0\.01"):
        Gptq(torch.float32, None, damping=0.01, max_damping=0.05).quantize(weight, gram, CHANNEL)


def test_it_needs_a_gram() -> None:
    with pytest.raises(ValueError, match="needs the Gram matrix"):
        gptq().quantize(layer(0)[0], None, CHANNEL)


def test_a_group_size_that_does_not_divide_is_an_error() -> None:
    with pytest.raises(InvalidInput, match="group size 32 does not divide 48 features"):
        gptq().quantize(*layer(0), grouped(32))


def test_the_weight_given_is_left_alone() -> None:
    weight, gram = layer(0)
    before = weight.clone(), gram.clone()
    gptq(20).quantize(weight, gram, CHANNEL)
    assert torch.equal(weight, before[0])
    assert torch.equal(gram, before[1])
