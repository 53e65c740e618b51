"""The student: the aligned model with transforms and fake quantization in it, differentiable in the transforms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from compressed_tensors.quantization import QuantizationArgs
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import functional_call

from caq.families import Bound, OwnWeights
from caq.families.bind import addresses
from caq.numerics.fake import fake_quantize_weight
from caq.transforms.apply import effective
from caq.transforms.base import Operator, Orthogonal
from caq.transforms.online import Site, Step, sites_of
from caq.transforms.plan import Plan
from caq.walk import BlockArguments, embed, head_logits, walk


@dataclass(frozen=True)
class Student:
    """What it takes to run the transformed model.

    Attributes:
        bound: the aligned model; its weights stay frozen and unchanged.
        plan: the transforms.
        steps: rounding at run time, after the maps that run online; empty for full precision.
        weight_format: quantize the linears' weights in this format while learning; None leaves them whole, for GPTQ to
            follow.
        checkpointing: recompute each block in the backward pass instead of keeping its activations.
    """

    bound: Bound
    plan: Plan
    steps: tuple[Step, ...] = ()
    weight_format: QuantizationArgs | None = None
    checkpointing: bool = True

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.bound.embedding.weight.device

    def sites(self, index: int, operators: Mapping[str, Operator]) -> tuple[Site, ...]:
        """Return what runs online in block `index`: the plan's maps, then rounding."""
        return (*self.plan.sites(index, operators), *sites_of(self.steps, index))

    def final_hidden_states(
        self, ids: Int[Tensor, "batch length"], parameters: Mapping[str, Tensor], arguments: BlockArguments
    ) -> Float[Tensor, "batch length hidden"]:
        """Return what the head reads, in the head's own coordinates; differentiable in the transforms' parameters.

        Head and embedding are not quantized, so rotating hidden states there and back costs `hidden` instead of
        `vocab` columns.
        """
        operators = self.plan.operators(parameters)
        hidden = embed(self.bound, OwnWeights(self.bound), ids)
        weights = Effective(self, operators, _working(hidden))
        rotation = residual_rotation(self, operators)
        if rotation is not None:
            hidden = rotation.apply(hidden.to(_working(hidden))).to(hidden.dtype)
        sites = partial(self.sites, operators=operators)
        stream = walk(self.bound, weights, hidden, arguments, sites, checkpointing=self.checkpointing)
        return _final(self.bound, stream, rotation)

    def logits(self, hidden: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch vocab"]:
        """Return the head's logits of final hidden states."""
        return head_logits(self.bound, OwnWeights(self.bound), hidden)


@dataclass(frozen=True)
class Effective:
    """The student's weights at one value of the transforms; embedding and head stay in their own coordinates.

    Attributes:
        student: whose.
        operators: the transforms that edit the blocks that are asked for.
        dtype: in which the weights are transformed; float32 at least.
    """

    student: Student
    operators: Mapping[str, Operator]
    dtype: torch.dtype

    def block(self, index: int) -> Mapping[str, Tensor]:
        """Return block `index`'s tensors, transformed, and fake-quantized where the student's weights are."""
        bound, args = self.student.bound, self.student.weight_format
        tensors = effective(bound, self.student.plan, index, self.operators, self.dtype)
        if args is None:
            return tensors
        rounded = {f"{address.path}.weight" for address in addresses(bound.branches[index]) if address.quantized}
        return {name: fake_quantize_weight(x, args) if name in rounded else x for name, x in tensors.items()}

    def outer(self) -> Mapping[str, Tensor]:
        """Return embedding, final norm and head as they are."""
        return OwnWeights(self.student.bound).outer()


def residual_rotation(student: Student, operators: Mapping[str, Operator]) -> Orthogonal | None:
    """Return the rotation of the student's stream, if there is one."""
    if student.plan.residual is None:
        return None
    rotation = operators[student.plan.residual]
    if not isinstance(rotation, Orthogonal):
        raise TypeError(f"the residual transform is a rotation, not {type(rotation).__name__}")
    return rotation


def _final(
    bound: Bound, stream: Float[Tensor, "batch length hidden"], rotation: Orthogonal | None
) -> Float[Tensor, "batch length hidden"]:
    """Normalise the stream; a rotated one without the norm's gain, which is applied after rotating back."""
    norm = bound.model.get_submodule(bound.family.final_norm)
    gain = norm.get_parameter("weight")
    if rotation is None:
        plain: Tensor = norm(stream)
        return plain
    unit = torch.full_like(gain, 1 - bound.final_norm.offset)
    normed: Tensor = functional_call(norm, {"weight": unit}, (stream,))
    back: Tensor = rotation.inverse.apply(normed.to(_working(normed))) * (gain + bound.final_norm.offset)
    return back.to(stream.dtype)


def _working(tensor: Tensor) -> torch.dtype:
    """Transforms are computed in float32 at least: a bf16 rotation is not orthogonal."""
    return torch.promote_types(tensor.dtype, torch.float32)
