"""Integers of 2 to 8 bits with a scale, and a zero point where they are asymmetric: compressed-tensors' numbers.

Forward, every value equals compressed-tensors' `fake_quantize` bit for bit, so what is learned on is what an engine
runs. Backward, rounding is the identity and *the scale is a function of its input*: without that path a rotation is
never told that it made the range smaller, and nothing is learned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.utils import calculate_qparams
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class IntegerGrid:
    """`(code - zero_point) * scale`, codes from `-2^(b-1)` to `2^(b-1) - 1`; symmetric formats have no zero point."""

    code_dtype: ClassVar[torch.dtype] = torch.int8

    def holds(self, args: QuantizationArgs) -> bool:
        """Return whether the format is made of integers."""
        return bool(args.type == "int")

    def parameters(
        self, rows: Float[Tensor, "*batch length"], args: QuantizationArgs, dtype: torch.dtype, shrink: float = 1.0
    ) -> dict[str, Float[Tensor, "*batch 1"]]:
        """Return `scale` (in `dtype`) and, if asymmetric, `zero_point` (int8): `shrink` of each row's range."""
        low, high = rows.amin(-1, keepdim=True) * shrink, rows.amax(-1, keepdim=True) * shrink
        scale, zero_point = calculate_qparams(low, high, args)
        if args.symmetric:
            return {"scale": scale.to(dtype)}
        return {"scale": scale.to(dtype), "zero_point": zero_point.to(torch.int8)}

    def nearest(
        self, x: Float[Tensor, "*shape"], parameters: Mapping[str, Tensor], args: QuantizationArgs
    ) -> Float[Tensor, "*shape"]:
        """Return the codes nearest to `x`, ties to even, as floats."""
        position = _position(x, parameters["scale"], parameters.get("zero_point"))
        return position.round_().clamp_(*_limits(args))

    def values(self, codes: Tensor, parameters: Mapping[str, Tensor]) -> Float[Tensor, "*shape"]:
        """Return what codes stand for, in the scale's dtype."""
        scale, zero_point = parameters["scale"], parameters.get("zero_point")
        level = codes.to(scale.dtype)
        return (level if zero_point is None else level - zero_point.to(scale.dtype)) * scale

    def fake(self, rows: Float[Tensor, "*batch length"], args: QuantizationArgs) -> Float[Tensor, "*batch length"]:
        """Round each row with a scale from its own range, with gradients, in `rows`' dtype."""
        low, high = _Extremes.apply(rows)
        limits = _limits(args)
        scale, zero_point = _differentiable_parameters(low, high, *limits, symmetric=args.symmetric)
        rounded: Tensor = _QuantizeDequantize.apply(rows, scale, zero_point, *limits)
        return rounded


def _limits(args: QuantizationArgs) -> tuple[int, int]:
    return -(2 ** (args.num_bits - 1)), 2 ** (args.num_bits - 1) - 1


def _differentiable_parameters(
    low: Tensor, high: Tensor, q_min: int, q_max: int, *, symmetric: bool
) -> tuple[Tensor, Tensor | None]:
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
