"""Asymmetric calibration: what is rounded comes nearest to the full-precision model's outputs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from torch import Tensor

from caq.errors import InvalidInput, QuantizationFailed
from caq.quantizers import Gptaq, Gptq, Quantizer
from caq.quantizers.target import target_weight
from tests.quantizers.test_blocks import GPTQ, Block, first_block, weights_of
from tests.support.formats import values_of

CHANNEL = QuantizationArgs(num_bits=4, strategy="channel", symmetric=True)
GPTAQ = Gptaq(clip_search=False, target_damping=1e-4)


def streams(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return a weight, the full-precision inputs, and inputs whose errors are correlated with them."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(32, 32, generator=generator)
    whole = torch.randn(400, 32, generator=generator) @ mixing
    drift = torch.eye(32) + 0.1 * torch.randn(32, 32, generator=generator)
    return torch.randn(16, 32, generator=generator), whole, whole @ drift


def moments(whole: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    return inputs.mT @ inputs / len(inputs), whole.mT @ inputs / len(inputs)


def objective(rounded: Tensor, inputs: Tensor, weight: Tensor, whole: Tensor) -> float:
    return float((inputs @ rounded.mT - whole @ weight.mT).square().mean())


def test_the_target_is_the_minimum_of_the_damped_objective() -> None:
    weight, whole, inputs = (x.double() for x in streams(0))
    gram, cross = moments(whole, inputs)
    damping = 0.1
    found = target_weight(weight, gram, cross, damping).requires_grad_()
    strength = damping * gram.diagonal().mean()
    loss = (inputs @ found.mT - whole @ weight.mT).square().sum() / len(inputs)
    (gradient,) = torch.autograd.grad(loss + strength * (found - weight).square().sum(), found)
    assert float(gradient.abs().max()) < 1e-10


def test_where_both_streams_are_one_the_weight_is_rounded_itself() -> None:
    weight, whole, _ = streams(1)
    torch.testing.assert_close(target_weight(weight, *moments(whole, whole), 0.01), weight)


def test_inputs_that_are_never_active_leave_the_weight_alone() -> None:
    nothing = torch.zeros(8, 8)
    assert torch.equal(target_weight(torch.ones(2, 8), nothing, nothing, 0.01), torch.ones(2, 8))


@pytest.mark.parametrize("seed", range(3))
def test_on_correlated_errors_it_repeats_the_full_precision_outputs_better_than_gptq(seed: int) -> None:
    weight, whole, inputs = streams(seed)
    gram, cross = moments(whole, inputs)
    own = GPTQ.quantize(weight, gram, CHANNEL, torch.float32)
    target = target_weight(weight, gram, cross, GPTAQ.target_damping)
    asymmetric = GPTAQ.quantize(target, gram, CHANNEL, torch.float32)
    errors = [objective(values_of(found), inputs, weight, whole) for found in (own, asymmetric)]
    assert errors[1] < 0.5 * errors[0]


def drifted(block: Block) -> Block:
    """Return the block with a stream that is not the full-precision model's, which is its reference."""
    mixing = torch.randn(48, 48, generator=torch.Generator().manual_seed(9)) * 0.02 + torch.eye(48)
    whole = block.unrounded
    return replace(block, inputs=replace(block.inputs, hidden=whole.hidden @ mixing, reference=whole))


def deviation(block: Block, quantizer: Quantizer) -> float:
    """Return how far the value projection's outputs are from the full-precision model's."""
    weights = weights_of(block.quantize(quantizer))
    name = "self_attn.v_proj.weight"
    assert block.inputs.reference is not None
    norm = block.bound.blocks[0].get_submodule("input_layernorm")
    gain = {"weight": block.folded["input_layernorm.weight"].float()}

    def read(hidden: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(norm, gain, (hidden,))
        return out

    ours = read(block.inputs.hidden) @ weights[name].float().mT
    return float((ours - read(block.inputs.reference.hidden) @ block.folded[name].float().mT).square().mean())


def test_a_block_is_rounded_towards_the_reference_stream() -> None:
    block = drifted(first_block(preset="W4A16", group_size="channel"))
    assert deviation(block, GPTAQ) < 0.8 * deviation(block, GPTQ)


def test_tokens_that_do_not_count_change_nothing() -> None:
    block = drifted(first_block())
    weights = torch.ones(block.inputs.hidden.shape[:2])
    weights[-1] = 0
    found = replace(block, inputs=replace(block.inputs, weights=weights)).quantize(GPTAQ)
    cut = replace(block.inputs, hidden=block.inputs.hidden[:-1])
    assert cut.reference is not None
    cut = replace(cut, reference=replace(cut.reference, hidden=cut.reference.hidden[:-1]))
    expected = replace(block, inputs=cut).quantize(GPTAQ)
    for path, quantized in found.linears.items():
        assert (quantized.codes != expected.linears[path].codes).float().mean() < 0.01


def test_a_target_without_a_solution_names_the_way_out() -> None:
    gram = -torch.eye(4)
    with pytest.raises(QuantizationFailed, match=r"raise quantizer\.target_damping"):
        target_weight(torch.ones(2, 4), gram, gram, 0.01)


def test_it_refuses_what_gptq_refuses() -> None:
    with pytest.raises(InvalidInput, match=r"damping: 2\.0 is above max_damping"):
        Gptaq(damping=2.0)


def test_it_has_gptqs_options_with_gptqs_defaults() -> None:
    ours: dict[str, Any] = Gptaq().model_dump(exclude={"name", "target_damping"})
    assert ours == Gptq().model_dump(exclude={"name"})
