"""Scales: from the weights' range, optionally clipped where that makes the rounding error smaller."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.utils import calculate_qparams
from jaxtyping import Float, Int8
from torch import Tensor

from caq.numerics.fake import dequantize, quantize_codes, row_length


@dataclass(frozen=True)
class ClipSearch:
    """Try `steps` clips between the full range and a fifth of it; keep, per scale, the one with the least error.

    The error is `sum |w - q(w)|^norm`; a norm above 2 minds the large weights more (GPTQ's MSE option; the authors of
    arXiv:2511.07842 use 2.4 and 80 steps).
    """

    norm: float = 2.4
    steps: int = 80

    def parameters(
        self, weight: Float[Tensor, "out in"], args: QuantizationArgs, dtype: torch.dtype
    ) -> tuple[Float[Tensor, "out groups"], Int8[Tensor, "out groups"]]:
        """Return scales (in `dtype`) and zero points."""
        best_scale, best_zero = range_parameters(weight, args, dtype)
        best_error = self._error(weight, best_scale, best_zero, args)
        for step in range(1, self.steps):
            scale, zero = range_parameters(weight, args, dtype, shrink=1 - step / (self.steps * 1.25))
            error = self._error(weight, scale, zero, args)
            better = error < best_error
            best_error = torch.where(better, error, best_error)
            best_scale = torch.where(better, scale, best_scale)
            best_zero = torch.where(better, zero, best_zero)
        return best_scale, best_zero

    def _error(self, weight: Tensor, scale: Tensor, zero: Tensor, args: QuantizationArgs) -> Tensor:
        rounded = dequantize(quantize_codes(weight, scale, zero, args), scale, zero, args).to(weight.dtype)
        difference: Tensor = (weight - rounded).abs().pow(self.norm)
        grouped: Tensor = difference.unflatten(-1, (scale.shape[-1], -1))
        return grouped.sum(-1)


def range_parameters(
    weight: Float[Tensor, "out in"], args: QuantizationArgs, dtype: torch.dtype, shrink: float = 1.0
) -> tuple[Float[Tensor, "out groups"], Int8[Tensor, "out groups"]]:
    """Return scales (in `dtype`, in which they will be stored) and zero points that cover `shrink` of the range.

    Raises:
        InvalidInput: the group size does not divide the inputs.
    """
    groups = weight.unflatten(-1, (-1, row_length(weight, args, per_row="channel")))
    scale, zero = calculate_qparams(groups.amin(-1) * shrink, groups.amax(-1) * shrink, args)
    return scale.to(dtype), zero.to(torch.int8)
