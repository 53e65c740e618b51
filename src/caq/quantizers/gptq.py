"""GPTQ: round one input column at a time and let the columns not yet rounded make up for the error.

Frantar et al., arXiv:2210.17323. With `H` the Gram matrix of the inputs and `U` the upper Cholesky factor of
`H^-1`, rounding column `i` leaves an error `e = (w_i - q_i) / U_ii`, which `w_j -= e U_ij` compensates for every
later column `j`. All rows are independent given `H`, so linears that read the same input are stacked and share one
factorisation and one loop.

Updates reach beyond a block of `block_size` columns once per block, as one matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from compressed_tensors.quantization import QuantizationArgs
from jaxtyping import Float
from torch import Tensor

from caq.errors import QuantizationFailed
from caq.ledger import Entry
from caq.quantizers.base import Quantized
from caq.quantizers.clip import ClipSearch, range_parameters

#: How much each escalation multiplies the damping by.
ESCALATION = 10.0


@dataclass(frozen=True)
class Gptq:
    """GPTQ without activation order.

    Attributes:
        scale_dtype: the precision in which scales are stored.
        clip: the clip search, or None for the full range.
        block_size: columns per lazy update.
        damping: share of the mean diagonal added to the Gram matrix.
        max_damping: damping beyond which the layer fails instead of being rounded to nearest.
    """

    scale_dtype: torch.dtype
    clip: ClipSearch | None
    block_size: int = 128
    damping: float = 0.01
    max_damping: float = 1.0
    needs_gram: ClassVar[bool] = True

    def quantize(
        self, weight: Float[Tensor, "out in"], gram: Float[Tensor, "in in"] | None, args: QuantizationArgs
    ) -> Quantized:
        """Return the rounded weight.

        Raises:
            QuantizationFailed: no damping up to `max_damping` makes the Gram matrix positive definite.
        """
        if gram is None:
            raise ValueError("GPTQ needs the Gram matrix of the layer's inputs")
        factor, entries = self._inverse_factor(gram)
        work = weight.clone()
        scale, zero_point = self._parameters(weight, args)
        codes = torch.empty_like(weight, dtype=torch.int8)
        for start in range(0, work.shape[1], self.block_size):
            stop = min(start + self.block_size, work.shape[1])
            scale, zero_point = self._regrouped(work, scale, zero_point, args, start, stop)
            errors = _round_block(work, codes, factor, scale, zero_point, args, start, stop)
            work[:, stop:] -= errors @ factor[start:stop, stop:]
        return Quantized(codes, scale, zero_point, args, entries)

    def _parameters(self, weight: Tensor, args: QuantizationArgs) -> tuple[Tensor, Tensor]:
        find = self.clip.parameters if self.clip else range_parameters
        return find(weight, args, self.scale_dtype)

    def _regrouped(
        self, work: Tensor, scale: Tensor, zero_point: Tensor, args: QuantizationArgs, start: int, stop: int
    ) -> tuple[Tensor, Tensor]:
        """Take the scales of the groups inside a block from the weights as compensation has left them."""
        if args.strategy != "group":
            return scale, zero_point
        first, last = start // args.group_size, -(-stop // args.group_size)
        inside = slice(first if start % args.group_size == 0 else first + 1, last)
        columns = work[:, inside.start * args.group_size : inside.stop * args.group_size]
        if columns.shape[1] == 0:
            return scale, zero_point
        new_scale, new_zero = self._parameters(columns, args)
        scale, zero_point = scale.clone(), zero_point.clone()
        scale[:, inside], zero_point[:, inside] = new_scale, new_zero
        return scale, zero_point

    def _inverse_factor(self, gram: Tensor) -> tuple[Float[Tensor, "in in"], tuple[Entry, ...]]:
        """Return the upper Cholesky factor of the damped Gram matrix's inverse, float32."""
        exact = gram.double()
        diagonal = exact.diagonal()
        # An input that is never active constrains nothing; on the diagonal it isolates its column.
        dead = diagonal == 0
        mean = diagonal[~dead].mean() if bool((~dead).any()) else torch.ones((), dtype=torch.float64)
        entries: list[Entry] = []
        damping = self.damping
        while damping <= self.max_damping:
            damped = exact + torch.diag(mean * damping + dead * mean)
            lower, failed = torch.linalg.cholesky_ex(damped)
            if not failed and bool(lower.isfinite().all()):
                inverse = torch.cholesky_inverse(lower)
                return torch.linalg.cholesky(inverse, upper=True).float(), tuple(entries)
            message = (
                f"the Gram matrix is not positive definite with damping {damping:g}; trying {damping * ESCALATION:g}"
            )
            entries.append(Entry("quantize", "damping-escalated", message, {"damping": damping}))
            damping *= ESCALATION
        raise QuantizationFailed(
            f"the Gram matrix ({gram.shape[0]} inputs) is not positive definite even with damping "
            f"{damping / ESCALATION:g}; use more calibration text (data.samples), or raise quantizer.max_damping"
        )


def _round_block(
    work: Tensor,
    codes: Tensor,
    factor: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    args: QuantizationArgs,
    start: int,
    stop: int,
) -> Float[Tensor, "out columns"]:
    """Round columns `start` to `stop`, compensating inside the block; fill `codes`, return the scaled errors.

    Works on the transpose, so that a column is contiguous, and in place: this loop is GPTQ's whole cost.
    """
    low, high = -(2 ** (args.num_bits - 1)), 2 ** (args.num_bits - 1) - 1
    columns = work[:, start:stop].T.contiguous()
    upper = factor[start:stop, start:stop]
    errors, rounded = torch.empty_like(columns), torch.empty_like(columns)
    group = args.group_size if args.strategy == "group" else work.shape[1]
    scales, zeros = scale.to(work.dtype).T.contiguous(), zero_point.to(work.dtype).T.contiguous()
    reciprocal = upper.diagonal().reciprocal()
    for i in range(stop - start):
        step, zero = scales[(start + i) // group], zeros[(start + i) // group]
        level = (columns[i] / step).add_(zero).round_().clamp_(low, high)
        rounded[i] = level
        torch.sub(columns[i], level.sub_(zero).mul_(step), out=errors[i])
        errors[i] *= reciprocal[i]
        columns[i + 1 :].addr_(upper[i, i + 1 :], errors[i], alpha=-1)
    codes[:, start:stop] = rounded.T.to(torch.int8)
    return errors.T
