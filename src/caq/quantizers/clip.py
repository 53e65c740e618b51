"""Scales from the weights' range, or clipped where that makes the rounding error smaller."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from compressed_tensors.quantization import QuantizationArgs
from jaxtyping import Float
from torch import Tensor

from caq.numerics.codes import dequantize, quantize_codes, range_parameters


def clipped_parameters(
    weight: Float[Tensor, "out in"], args: QuantizationArgs, dtype: torch.dtype, *, norm: float, steps: int
) -> dict[str, Float[Tensor, "out groups"]]:
    """Try `steps` clips from the full range, the first, to a fifth of it; keep, per scale, that with the least error.

    The error is `sum |w - q(w)|^norm`; a norm above 2 weighs the large weights more (GPTQ's MSE option; the authors of
    arXiv:2511.07842 use 2.4 and 80 steps).
    """
    best = range_parameters(weight, args, dtype)
    best_error = _error(weight, best, args, norm)
    for step in range(1, steps):
        tried = range_parameters(weight, args, dtype, shrink=1 - step / (steps * 1.25))
        error = _error(weight, tried, args, norm)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best = {name: torch.where(better, parameter, best[name]) for name, parameter in tried.items()}
    return best


def _error(
    weight: Float[Tensor, "out in"], parameters: Mapping[str, Tensor], args: QuantizationArgs, norm: float
) -> Float[Tensor, "out groups"]:
    rounded = dequantize(quantize_codes(weight, parameters, args), parameters, args).to(weight.dtype)
    difference = (weight - rounded).abs().pow(norm)
    grouped: Tensor = difference.unflatten(-1, (parameters["scale"].shape[-1], -1))
    return grouped.sum(-1)
