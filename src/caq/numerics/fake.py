"""Straight-through fake quantization of activations and weights, on whatever grid their format has."""

from __future__ import annotations

from compressed_tensors.quantization import QuantizationArgs
from jaxtyping import Float
from torch import Tensor

from caq.numerics.grids import as_rows, grid_of


def fake_quantize_dynamic(
    x: Float[Tensor, "*batch features"], args: QuantizationArgs
) -> Float[Tensor, "*batch features"]:
    """Quantize and dequantize activations with a scale per token or per group of features.

    Args:
        x: activations in float32, bfloat16 or float16; any number of leading dimensions.
        args: a format that has a grid, with strategy `token` or `group`.

    Returns:
        The values that an engine computes with, in x's shape and dtype. The gradient is straight-through in rounding
        and exact in the scale and the clipping.

    Raises:
        Unsupported: no grid holds the format, or it has another strategy.
        InvalidInput: the group size does not divide the features.
    """
    return grid_of(args).fake(as_rows(x, args, "token"), args).flatten(-2)


def fake_quantize_weight(weight: Float[Tensor, "out in"], args: QuantizationArgs) -> Float[Tensor, "out in"]:
    """Quantize and dequantize a weight with scales from the range of each output channel or group of inputs.

    Gradient and errors are those of `fake_quantize_dynamic`, with strategies `channel` and `group`.
    """
    return grid_of(args).fake(as_rows(weight, args, "channel"), args).flatten(-2)
