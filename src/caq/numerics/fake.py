"""Straight-through fake quantization: compressed-tensors' numbers forward, useful gradients backward.

Forward, every value equals compressed-tensors' `fake_quantize` bit for bit, so what is learned on is what
an engine runs. Backward, rounding is the identity and *the scale is a function of its input*: without that
path a rotation is never told that it made the range smaller, and nothing is learned.

Everything here works on rows: the last dimension shares one scale, groups having been unfolded into it.
"""

from __future__ import annotations

from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize as ct_dequantize
from compressed_tensors.quantization.lifecycle.forward import quantize as ct_quantize
from jaxtyping import Float, Int
from torch import Tensor

from caq.errors import InvalidInput, Unsupported


def fake_quantize_dynamic(
    x: Float[Tensor, "*batch features"], args: QuantizationArgs
) -> Float[Tensor, "*batch features"]:
    """Quantize and dequantize activations with a scale per token or per group of features.

    Args:
        x: activations in float32, bfloat16 or float16; any number of leading dimensions.
        args: an integer format with strategy `token` or `group`, symmetric or not.

    Returns:
        The values that an integer engine computes with, in x's shape and dtype. The gradient is
        straight-through in rounding (the zero point's too) and exact in the scale and the clipping.

    Raises:
        Unsupported: for float formats and other strategies.
        InvalidInput: when the group size does not divide the features.
    """
    _require_integer(args)
    return _fake_quantize_last(x, row_length(x, args, per_row="token"), args)


def fake_quantize_weight(weight: Float[Tensor, "out in"], args: QuantizationArgs) -> Float[Tensor, "out in"]:
    """Quantize and dequantize a weight with min-max scales per output channel or group of inputs.

    Gradient and errors are those of `fake_quantize_dynamic`, with strategies `channel` and `group`.
    """
    _require_integer(args)
    return _fake_quantize_last(weight, row_length(weight, args, per_row="channel"), args)


def quantize_codes(
    weight: Float[Tensor, "out in"],
    scale: Float[Tensor, "out groups"],
    zero_point: Int[Tensor, "out groups"],
    args: QuantizationArgs,
) -> Int[Tensor, "out in"]:
    """Return the integer codes (int8) of a weight, in the format's signed range."""
    codes: Tensor = ct_quantize(weight, scale, zero_point, args, dtype=args.pytorch_dtype())
    return codes


def dequantize(
    codes: Int[Tensor, "out in"],
    scale: Float[Tensor, "out groups"],
    zero_point: Int[Tensor, "out groups"],
    args: QuantizationArgs,
) -> Float[Tensor, "out in"]:
    """Return the values that integer codes stand for, in the scale's dtype."""
    values: Tensor = ct_dequantize(codes, scale, zero_point, args)
    return values


def _require_integer(args: QuantizationArgs) -> None:
    if args.type != "int":
        raise Unsupported(
            f"{args.num_bits}-bit {args.type} numbers cannot be simulated with gradients yet; "
            "choose an integer format, such as the preset W4A4 or W4A16"
        )


def row_length(x: Tensor, args: QuantizationArgs, per_row: str) -> int:
    """Return how many neighbours along the last dimension share a scale.

    Raises:
        Unsupported: the strategy is neither `per_row` nor `group`.
        InvalidInput: the group size does not divide the features.
    """
    features = x.shape[-1]
    if args.strategy == per_row:
        return features
    if args.strategy != "group":
        raise Unsupported(f"strategy {args.strategy!r} is not supported here; choose {per_row!r} or 'group'")
    size = int(args.group_size)
    if features % size:
        raise InvalidInput([f"group size {size} does not divide {features} features; choose a divisor"])
    return size


def _fake_quantize_last(x: Tensor, row_length: int, args: QuantizationArgs) -> Tensor:
    if row_length == x.shape[-1]:
        return _fake_quantize_rows(x, args)
    return _fake_quantize_rows(x.unflatten(-1, (-1, row_length)), args).flatten(-2)


def _fake_quantize_rows(x: Tensor, args: QuantizationArgs) -> Tensor:
    q_min, q_max = -(2 ** (args.num_bits - 1)), 2 ** (args.num_bits - 1) - 1
    low, high = _Extremes.apply(x)
    scale, zero_point = _parameters(low, high, q_min, q_max, symmetric=args.symmetric)
    y: Tensor = _QuantizeDequantize.apply(x, scale, zero_point, q_min, q_max)
    return y


def _parameters(low: Tensor, high: Tensor, q_min: int, q_max: int, *, symmetric: bool) -> tuple[Tensor, Tensor | None]:
    """Return scale and zero point in low's dtype, differentiable; no zero point when symmetric."""
    low, high = low.clamp(max=0), high.clamp(min=0)
    # A tensor divisor: CUDA multiplies by the reciprocal of a Python number, which rounds differently.
    if symmetric:
        return _nonzero(torch.maximum(-low, high) / low.new_full((), (q_max - q_min) / 2)), None
    scale = _nonzero((high - low) / low.new_full((), q_max - q_min))
    return scale, _RoundStraightThrough.apply((q_min - low / scale).clamp(q_min, q_max))


def _nonzero(scale: Tensor) -> Tensor:
    return scale.masked_fill(scale == 0, torch.finfo(scale.dtype).eps)


class _RoundStraightThrough(torch.autograd.Function):
    """Round half to even; the gradient passes unchanged."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        # Adding zero turns -0.0 into 0.0, as a trip through int8 does.
        return x.round().add_(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class _Extremes(torch.autograd.Function):
    """The smallest and the largest value of each row; elements that tie share the gradient.

    As `amin` and `amax`, whose own gradients make boolean masks: on a CPU those cost five times as much.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
        ctx.save_for_backward(x, low, high)
        return low, high

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        x, *extremes = ctx.saved_tensors
        low, high = (_equal(x, extreme) for extreme in extremes)
        low_share, high_share = (
            gradient / mask.sum(-1, keepdim=True) for gradient, mask in zip(gradients, (low, high), strict=True)
        )
        return low.mul_(low_share).addcmul_(high, high_share)


class _QuantizeDequantize(torch.autograd.Function):
    """y = (round(clamp(x/s + z)) − z)·s by rows; of x's size, only x itself is kept for the backward pass.

    With u = x/s + z, q = round(clamp(u)) and 1_in = [q_min ≤ u ≤ q_max], straight through the rounding:
    ∂y/∂x = 1_in, ∂y/∂s = (q − z) − 1_in·(u − z), ∂y/∂z = −s·(1 − 1_in).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor | None, q_min: int, q_max: int) -> Tensor:
        ctx.save_for_backward(x, scale, zero_point)
        ctx.limits = q_min, q_max
        y = _position(x, scale, zero_point).clamp_(q_min, q_max).round_()
        if zero_point is not None:
            y -= zero_point
        return y.mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = gradients
        x, scale, zero_point = ctx.saved_tensors
        position = _position(x, scale, zero_point)
        level = position.clamp(*ctx.limits)
        inside = _equal(level, position)
        level.round_()
        if zero_point is not None:
            level, position = level.sub_(zero_point), position.sub_(zero_point)
        # Subtracted before the sum: two sums rounded to bfloat16 would cancel to noise.
        grad_scale = (level.sub_(position.mul_(inside)).mul_(grad)).sum(-1, keepdim=True)
        grad_x = inside.mul_(grad)
        if zero_point is None:
            return grad_x, grad_scale, None, None, None
        return grad_x, grad_scale, scale * (grad_x - grad).sum(-1, keepdim=True), None, None


def _position(x: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
    # Adding zero even when symmetric turns -0.0 into 0.0, as compressed-tensors does.
    return (x / scale).add_(0 if zero_point is None else zero_point)


def _equal(a: Tensor, b: Tensor) -> Tensor:
    """Return 1 where equal and 0 elsewhere in a's dtype: no boolean in between, which CPUs convert slowly."""
    return torch.eq(a, b, out=torch.empty_like(a))
