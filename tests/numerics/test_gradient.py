"""The fake quantizer's gradient: straight through the rounding, exact in the scale and in what is clamped."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from torch import Tensor

from caq.numerics.fake import fake_quantize_dynamic, fake_quantize_weight

FORMS = pytest.mark.parametrize("bits", [2, 4, 8])
SYMMETRIES = pytest.mark.parametrize("symmetric", [True, False])


def drawn(seed: int, *shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, direction = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return x.requires_grad_(), direction


def gradient(function: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor) -> Tensor:
    (found,) = torch.autograd.grad((function(x) * direction).sum(), x)
    return found


def round_through(x: Tensor) -> Tensor:
    return x + (x.round() - x).detach()


def plain(x: Tensor, bits: int, symmetric: bool, *, detached: bool = False) -> Tensor:
    """Fake quantization as one would write it down, left to autograd; the last dimension shares a scale."""
    low_code, high_code = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    scale = 2 * torch.maximum(-low, high) / (2**bits - 1) if symmetric else (high - low) / (2**bits - 1)
    scale = scale.detach() if detached else scale
    zero = torch.zeros_like(scale) if symmetric else round_through((low_code - low / scale).clamp(low_code, high_code))
    values: Tensor = (round_through((x / scale + zero).clamp(low_code, high_code)) - zero) * scale
    return values


@FORMS
@SYMMETRIES
@pytest.mark.parametrize("seed", range(3))
def test_it_is_autograd_of_the_plain_expression_with_rounding_passed_through(
    bits: int, symmetric: bool, seed: int
) -> None:
    x, direction = drawn(seed, 3, 5, 24)
    token = QuantizationArgs(num_bits=bits, strategy="token", symmetric=symmetric, dynamic=True)
    found = gradient(lambda x: fake_quantize_dynamic(x, token), x, direction)
    torch.testing.assert_close(found, gradient(lambda x: plain(x, bits, symmetric), x, direction))


@FORMS
@SYMMETRIES
def test_groups_and_channels_have_the_gradient_of_their_own_rows(bits: int, symmetric: bool) -> None:
    x, direction = drawn(0, 6, 24)
    group = QuantizationArgs(num_bits=bits, strategy="group", group_size=8, symmetric=symmetric, dynamic=True)
    grouped = gradient(lambda x: plain(x.unflatten(-1, (3, 8)), bits, symmetric).flatten(-2), x, direction)
    torch.testing.assert_close(gradient(lambda x: fake_quantize_dynamic(x, group), x, direction), grouped)
    torch.testing.assert_close(gradient(lambda x: fake_quantize_weight(x, group), x, direction), grouped)
    channel = QuantizationArgs(num_bits=bits, strategy="channel", symmetric=symmetric)
    found = gradient(lambda x: fake_quantize_weight(x, channel), x, direction)
    torch.testing.assert_close(found, gradient(lambda x: plain(x, bits, symmetric), x, direction))


@FORMS
@SYMMETRIES
def test_elements_that_tie_for_the_extreme_share_its_gradient(bits: int, symmetric: bool) -> None:
    x = torch.tensor([[2.0, -0.3, 2.0, -1.5, -1.5, -1.5, 0.1]], dtype=torch.float64, requires_grad=True)
    direction = torch.arange(7, dtype=torch.float64)[None] - 2.5
    args = QuantizationArgs(num_bits=bits, strategy="token", symmetric=symmetric, dynamic=True)
    found = gradient(lambda x: fake_quantize_dynamic(x, args), x, direction)
    torch.testing.assert_close(found, gradient(lambda x: plain(x, bits, symmetric), x, direction))


@FORMS
@SYMMETRIES
def test_it_knows_that_the_output_grows_with_the_input(bits: int, symmetric: bool) -> None:
    """Euler: q(c·x) = c·q(x) for every c > 0, so x·∇(v·q) = v·q. A detached scale breaks it."""
    x, direction = drawn(1, 4, 40)
    args = QuantizationArgs(num_bits=bits, strategy="token", symmetric=symmetric, dynamic=True)
    values = (fake_quantize_dynamic(x, args) * direction).sum()
    growth = (x * gradient(lambda x: fake_quantize_dynamic(x, args), x, direction)).sum()
    torch.testing.assert_close(growth, values)
    detached = (x * gradient(lambda x: plain(x, bits, symmetric, detached=True), x, direction)).sum()
    assert (detached - values).abs() > 1e-2


@FORMS
def test_moving_the_extreme_moves_every_value_as_finite_differences_say(bits: int) -> None:
    """The largest element alone sets a symmetric scale; the codes of the others stay while it moves a little."""
    x, direction = drawn(2, 1, 16)
    x = x.detach()
    x[0, 3], step = 4.0, 1e-7
    # The extreme's own output is s·q_max, which moves through the scale alone: it is clamped.
    args = QuantizationArgs(num_bits=bits, strategy="token", symmetric=True, dynamic=True)
    above, below = x.clone(), x.clone()
    above[0, 3] += step
    below[0, 3] -= step
    slope = (fake_quantize_dynamic(above, args) - fake_quantize_dynamic(below, args)) / (2 * step)
    found = gradient(lambda x: fake_quantize_dynamic(x, args), x.requires_grad_(), direction)
    # Straight through, each unclamped element also loses its own position u times the scale's slope 2/(2^b − 1).
    scale_slope = 2 / (2**bits - 1)
    position = x.detach() / (4.0 * scale_slope)
    inside = position <= 2 ** (bits - 1) - 1
    expected = (direction * (slope - inside * position * scale_slope)).sum()
    torch.testing.assert_close(found[0, 3], expected, rtol=1e-5, atol=1e-5)


@FORMS
def test_what_is_clamped_passes_no_gradient_to_itself(bits: int) -> None:
    """The positive extreme sits half a step past the largest code; its neighbour below the extreme is clamped, too."""
    x = torch.tensor([[1.0, 0.9999, 0.1, -0.2]], dtype=torch.float64, requires_grad=True)
    args = QuantizationArgs(num_bits=bits, strategy="token", symmetric=True, dynamic=True)
    found = gradient(lambda x: fake_quantize_dynamic(x, args), x, torch.ones_like(x))
    assert found[0, 1] == 0
    assert found[0, 2] == 1
    assert found[0, 0] != 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@SYMMETRIES
def test_zero_and_constant_rows_have_a_finite_gradient(dtype: torch.dtype, symmetric: bool) -> None:
    x = torch.tensor([[0.0] * 6, [3.0] * 6, [-3.0] * 6, [0.0, 0, 0, 0, 0, 1e-7]]).to(dtype).requires_grad_()
    args = QuantizationArgs(num_bits=4, strategy="token", symmetric=symmetric, dynamic=True)
    found = gradient(lambda x: fake_quantize_dynamic(x, args), x, torch.ones_like(x))
    assert found.dtype == dtype
    assert bool(found.isfinite().all())


@SYMMETRIES
def test_sums_in_bfloat16_do_not_cancel_to_noise(symmetric: bool) -> None:
    """On a grid whose every value bfloat16 holds; codes and positions each add up to about 1,800, a step of 8 apart."""
    x = torch.randint(0, 8, (4, 512), generator=torch.Generator().manual_seed(0)).double()
    x[:, 0], x[:, 1] = 7.5, -7.5
    args = QuantizationArgs(num_bits=4, strategy="token", symmetric=symmetric, dynamic=True)
    exact, rounded = (
        gradient(lambda x: fake_quantize_dynamic(x, args), y, torch.ones_like(y))
        for y in (x.requires_grad_(), x.detach().bfloat16().requires_grad_())
    )
    torch.testing.assert_close(rounded.double(), exact, rtol=1e-2, atol=1e-2)
