"""Quantizing a model block by block: each block sees what the quantized blocks before it really put out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from compressed_tensors.quantization import QuantizationArgs
from jaxtyping import Float
from torch import Tensor

from caq.errors import QuantizationFailed
from caq.ledger import Entry
from caq.quantizers.base import Quantized, Quantizer
from caq.student import BlockCalls, Student, run_block
from caq.transforms.apply import cast
from caq.transforms.online import Site


@dataclass(frozen=True)
class QuantizedBlock:
    """One block after quantization.

    Attributes:
        linears: quantized weights by path inside the block.
        others: every other tensor (biases, gains) by name inside the block, folded, float64.
    """

    linears: Mapping[str, Quantized]
    others: Mapping[str, Tensor]

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The linears' departures."""
        return tuple(entry for quantized in self.linears.values() for entry in quantized.entries)

    def weights(self) -> dict[str, Tensor]:
        """Return what the block computes with, by tensor name."""
        return {
            **self.others,
            **{f"{path}.weight": quantized.weight() for path, quantized in self.linears.items()},
        }


def quantize_block(
    student: Student,
    index: int,
    folded: Mapping[str, Float[Tensor, ...]],
    hidden: Float[Tensor, "samples length hidden"],
    calls: BlockCalls,
    quantizer: Quantizer,
    args: QuantizationArgs,
) -> QuantizedBlock:
    """Quantize block `index`.

    Args:
        student: its sites decide whether statistics come from quantized activations.
        index: the block.
        folded: the block's folded tensors, float64.
        hidden: the block's inputs on the calibration sequences, as the quantized blocks before it put them out.
        calls: keyword arguments of the blocks' forward calls for one sequence.
        quantizer: rounds the weights.
        args: the weights' format.
    """
    groups = shared_inputs(student)
    grams = _gram_matrices(student, index, folded, hidden, calls, groups) if quantizer.needs_gram else {}
    linears: dict[str, Quantized] = {}
    for group in groups:
        linears |= _quantize_group(group, folded, grams.get(group[0]), quantizer, args, f"block {index}")
    others = {name: tensor for name, tensor in folded.items() if name.removesuffix(".weight") not in linears}
    return QuantizedBlock({path: linears[path] for path in student.bound.linears}, others)


def shared_inputs(student: Student) -> tuple[tuple[str, ...], ...]:
    """Return the linears of a block, grouped by the input that they read."""
    attention, mlp = student.bound.family.attention, student.bound.family.mlp
    return (attention.readers, (attention.output,), mlp.readers, (mlp.down,))


def _quantize_group(
    paths: tuple[str, ...],
    folded: Mapping[str, Tensor],
    gram: Tensor | None,
    quantizer: Quantizer,
    args: QuantizationArgs,
    where: str,
) -> dict[str, Quantized]:
    weights = [folded[f"{path}.weight"].float() for path in paths]
    try:
        stacked = quantizer.quantize(torch.cat(weights), gram, args)
    except QuantizationFailed as error:
        raise QuantizationFailed(f"{where}, {paths[0]}: {error}") from error
    rows = [weight.shape[0] for weight in weights]
    parts = zip(
        paths,
        stacked.codes.split(rows),
        stacked.scale.split(rows),
        stacked.zero_point.split(rows),
        strict=True,
    )
    result = {path: Quantized(codes, scale, zero, args) for path, codes, scale, zero in parts}
    named = tuple(replace(entry, message=f"{where}, {paths[0]}: {entry.message}") for entry in stacked.entries)
    return result | {paths[0]: replace(result[paths[0]], entries=named)}


@torch.no_grad()
def _gram_matrices(
    student: Student,
    index: int,
    folded: Mapping[str, Tensor],
    hidden: Tensor,
    calls: BlockCalls,
    groups: tuple[tuple[str, ...], ...],
) -> dict[str, Float[Tensor, "in in"]]:
    """Return the mean of `x^T x` over all tokens for the first linear of every group, float32."""
    device = student.bound.embedding.weight.device
    tokens = hidden.shape[0] * hidden.shape[1]
    totals: dict[str, Tensor] = {}

    def recorder(path: str) -> Callable[[Tensor], Tensor]:
        def record(x: Tensor) -> Tensor:
            rows = x.flatten(0, -2).float()
            update = rows.mT @ rows / tokens
            totals[path] = totals[path] + update if path in totals else update
            return x

        return record

    recorders = tuple(Site(group[0], "input", recorder(group[0])) for group in groups)
    weights = cast(folded, hidden.dtype)
    for sample in hidden:
        run_block(student, index, weights, sample[None].to(device), calls[index], recorders)
    return totals


@torch.no_grad()
def block_outputs(
    student: Student,
    index: int,
    weights: Mapping[str, Tensor],
    hidden: Float[Tensor, "samples length hidden"],
    calls: BlockCalls,
) -> Float[Tensor, "samples length hidden"]:
    """Return what block `index` with `weights` puts out for every sequence."""
    device, weights = student.bound.embedding.weight.device, cast(weights, hidden.dtype)
    return torch.stack(
        [
            run_block(student, index, weights, sample[None].to(device), calls[index])[0].to(hidden.device)
            for sample in hidden
        ]
    )
