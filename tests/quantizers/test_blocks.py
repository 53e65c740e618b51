"""One block of a tiny model through the quantizer: what it sees, what it shares, and what comes out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from torch import Tensor

from caq.errors import QuantizationFailed
from caq.families import bind, find
from caq.numerics.fake import fake_quantize_dynamic
from caq.numerics.scheme import Numerics, resolve
from caq.quantizers import Quantized
from caq.quantizers.blocks import QuantizedBlock, block_outputs, quantize_block, shared_inputs
from caq.quantizers.gptq import Gptq
from caq.quantizers.rtn import RoundToNearest
from caq.recipe import SchemeRecipe, TransformRecipe
from caq.student import BlockCalls, Student, block_calls, embed, run_block
from caq.transforms.apply import fold_block, operators
from caq.transforms.hadamard import WalshHadamard
from caq.transforms.online import activation_sites, hadamard_sites
from caq.transforms.plan import make_plan
from tests.support.tiny import tiny_model

IDS = torch.randint(0, 64, (5, 24), generator=torch.Generator().manual_seed(3))
TRANSFORMS = TransformRecipe(learn=False)
GPTQ = Gptq(torch.float32, None)
Q, K, V, OUTPUT = (f"self_attn.{name}_proj" for name in "qkvo")
GATE, UP, DOWN = (f"mlp.{name}_proj" for name in ("gate", "up", "down"))


@dataclass(frozen=True)
class Block:
    """Everything `quantize_block` takes for the first block of a tiny model."""

    student: Student
    numerics: Numerics
    folded: dict[str, Tensor]
    hidden: Tensor
    calls: BlockCalls

    @property
    def weights(self) -> QuantizationArgs:
        return self.numerics.linear.weights

    def quantize(self, quantizer: Any) -> QuantizedBlock:
        return quantize_block(self.student, 0, self.folded, self.hidden, self.calls, quantizer, self.weights)


def first_block(family: str = "llama", **scheme: Any) -> Block:
    model = tiny_model(family, dtype=torch.float32)
    bound = bind(find(model.config.model_type), model)
    plan = make_plan(bound, TRANSFORMS, seed=0)
    numerics = resolve(SchemeRecipe(**scheme), bound.shape.head_dim)
    sites = (*hadamard_sites(bound.family, bound.shape, TRANSFORMS), *activation_sites(bound.family, numerics))
    student = Student(bound, plan, sites)
    transforms = operators(plan, {})
    folded = fold_block(bound, plan, 0, transforms)
    return Block(student, numerics, folded, embed(student, IDS, transforms), block_calls(bound, IDS[:1]))


@dataclass(frozen=True)
class Recording:
    """GPTQ that keeps what it is given."""

    needs_gram: bool = True
    seen: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def quantize(self, weight: Tensor, gram: Tensor | None, args: QuantizationArgs) -> Quantized:
        assert gram is not None
        self.seen.append((weight, gram))
        return GPTQ.quantize(weight, gram, args)


def unquantized_inputs(block: Block) -> dict[str, Tensor]:
    """Return, per group of linears, its input before the block's own hooks touch it, all tokens as rows."""
    module, seen = block.student.bound.blocks[0], dict[str, list[Tensor]]()

    def keep(name: str) -> Callable[..., None]:
        def hook(_: Any, arguments: tuple[Tensor, ...], *output: Tensor) -> None:
            seen.setdefault(name, []).append((output or arguments)[0].flatten(0, -2))

        return hook

    # Registered before the student's hooks, so called before them.
    handles = [
        module.get_submodule("input_layernorm").register_forward_hook(keep(Q)),
        module.get_submodule("post_attention_layernorm").register_forward_hook(keep(GATE)),
        module.get_submodule(OUTPUT).register_forward_pre_hook(keep(OUTPUT)),
        module.get_submodule(DOWN).register_forward_pre_hook(keep(DOWN)),
    ]
    for sample in block.hidden:
        run_block(block.student, 0, block.folded, sample[None], block.calls[0])
    for handle in handles:
        handle.remove()
    return {name: torch.cat(rows) for name, rows in seen.items()}


@pytest.mark.parametrize("groups", [False, True], ids=["o per token", "o in groups"])
def test_statistics_are_of_the_quantized_and_rotated_activations(groups: bool) -> None:
    block, recording = first_block(output_projection_groups=groups), Recording()
    block.quantize(recording)
    inputs = unquantized_inputs(block)
    inputs[DOWN] = WalshHadamard(8).apply(inputs[DOWN])
    formats = dict.fromkeys(inputs, block.numerics.linear.input_activations)
    formats[OUTPUT] = block.numerics.output_projection.input_activations
    for name, (_, gram) in zip((Q, OUTPUT, GATE, DOWN), recording.seen, strict=True):
        x = fake_quantize_dynamic(inputs[name], formats[name])
        torch.testing.assert_close(gram, x.mT @ x / IDS.numel(), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(gram, inputs[name].mT @ inputs[name] / IDS.numel(), rtol=1e-2, atol=1e-3)


def test_without_activation_sites_statistics_are_of_full_precision() -> None:
    block, recording = first_block(), Recording()
    block = replace(block, student=replace(block.student, sites=()))
    block.quantize(recording)
    x = unquantized_inputs(block)[DOWN]
    torch.testing.assert_close(recording.seen[3][1], x.mT @ x / IDS.numel(), rtol=1e-4, atol=1e-5)


def test_linears_that_read_the_same_input_share_one_factorisation_and_come_out_as_each_alone() -> None:
    block, recording = first_block(), Recording()
    found = block.quantize(recording)
    groups = shared_inputs(block.student)
    assert groups == ((Q, K, V), (OUTPUT,), (GATE, UP), (DOWN,))
    assert len(recording.seen) == len(groups)
    for paths, (weight, gram) in zip(groups, recording.seen, strict=True):
        assert torch.equal(weight, torch.cat([block.folded[f"{path}.weight"].float() for path in paths]))
        for path in paths:
            alone = GPTQ.quantize(block.folded[f"{path}.weight"].float(), gram, block.weights)
            assert torch.equal(found.linears[path].codes, alone.codes)
            assert torch.equal(found.linears[path].scale, alone.scale)


@pytest.mark.parametrize("family", ["llama-biases", "qwen3"])
def test_every_tensor_of_the_block_comes_out_and_only_linears_are_rounded(family: str) -> None:
    block = first_block(family)
    found = block.quantize(GPTQ)
    assert tuple(found.linears) == block.student.bound.linears
    assert set(found.weights()) == set(block.folded)
    for name, tensor in found.others.items():
        assert torch.equal(tensor, block.folded[name])
    for path, quantized in found.linears.items():
        assert quantized.weight().unique(dim=1).shape == block.folded[f"{path}.weight"].shape
        rows = quantized.weight() / quantized.scale
        torch.testing.assert_close(rows, rows.round(), rtol=0, atol=1e-5)


def test_the_block_after_gptq_is_nearer_to_the_original_than_after_rounding_to_nearest() -> None:
    block = first_block()
    whole = block_outputs(
        replace(block.student, sites=block.student.sites[:1]), 0, block.folded, block.hidden, block.calls
    )
    gptq, nearest = (
        block_outputs(block.student, 0, block.quantize(quantizer).weights(), block.hidden, block.calls)
        for quantizer in (GPTQ, RoundToNearest(torch.float32, None))
    )
    assert (gptq - whole).square().mean() < (nearest - whole).square().mean()


def test_outputs_are_those_of_the_model_with_the_weights_in_place() -> None:
    block = first_block()
    plain = replace(block.student, sites=())
    weights = block.quantize(GPTQ).weights()
    found = block_outputs(plain, 0, weights, block.hidden, block.calls)
    module = tiny_model("llama", dtype=torch.float32).model.layers[0]
    module.load_state_dict(weights)
    for sample, output in zip(block.hidden, found, strict=True):
        torch.testing.assert_close(output, module(sample[None], **block.calls[0])[0])


def test_a_quantizer_that_needs_no_statistics_costs_no_pass_over_the_data() -> None:
    block = replace(first_block(), hidden=torch.empty(0), calls=())
    found = block.quantize(RoundToNearest(torch.float32, None))
    expected = RoundToNearest(torch.float32, None).quantize(block.folded[f"{V}.weight"].float(), None, block.weights)
    assert torch.equal(found.linears[V].codes, expected.codes)


def test_escalated_damping_is_in_the_ledger_once_with_the_place() -> None:
    block = first_block()
    # Eight tokens cannot span 48 inputs: singular up to float32's rounding.
    block = replace(block, hidden=block.hidden[:1, :8], calls=block_calls(block.student.bound, IDS[:1, :8]))
    entries = block.quantize(replace(GPTQ, damping=1e-12)).entries
    places = [entry.message.split(":")[0] for entry in entries]
    assert set(places) == {f"block 0, {path}" for path in (Q, OUTPUT, GATE, DOWN)}
    first = [entry.details["damping"] for entry in entries if entry.message.startswith(f"block 0, {Q}")]
    assert len(first) == len({*first})


def test_a_block_that_cannot_be_solved_fails_with_its_name() -> None:
    block = first_block()
    block = replace(block, hidden=torch.full_like(block.hidden, torch.nan))
    with pytest.raises(QuantizationFailed, match=r"block 0, self_attn\.q_proj: the Gram matrix \(48 inputs\)"):
        block.quantize(GPTQ)
