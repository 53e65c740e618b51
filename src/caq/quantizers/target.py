"""What is rounded where a linear is to repeat the full-precision model's outputs, and not its own weight's.

Each block of a quantized model reads what the quantized blocks before it made of the text, `X`, and not what the
full-precision model has there, `R` (tokens by inputs). GPTQ rounds `W` so that `X Q^T` comes near to `X W^T`, and what
went wrong before stays wrong. Asymmetric calibration (GPTAQ, arXiv:2504.02692) asks for `X Q^T` near to `R W^T`. With
`H = X^T X` and `C = R^T X`, for any `V`

    |X V^T - R W^T|^2 = tr((V - W*) H (V - W*)^T) + const,        W* = W C H^-1,

so that rounding `W*` under `H`, by GPTQ or whatever else, is all there is to do. `H` is damped, and the damping pulls
towards `W`: the minimum of `|X V^T - R W^T|^2 + d |V - W|^2` is

    W* = W + W (C - H) (H + d)^-1.

Activations that are rounded are part of `X`. The paper derives its update one column at a time: the deviation of a
column's input is made up for by the columns that are not yet rounded. Here all columns make up for it, before any of
them is rounded.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from caq.errors import QuantizationFailed


def target_weight(
    weight: Float[Tensor, "out in"], gram: Float[Tensor, "in in"], cross: Float[Tensor, "in in"], damping: float
) -> Float[Tensor, "out in"]:
    """Return `W*`, in the weight's precision.

    Args:
        weight: the full-precision model's.
        gram: mean of `x^T x`, `x` what the quantized model's linear reads.
        cross: mean of `r^T x`, `r` what the full-precision model's reads at the same token.
        damping: share of the Gram matrix's mean diagonal that is added to it.

    Raises:
        QuantizationFailed: the damped Gram matrix is not positive definite.
    """
    exact = gram.double()
    mean = exact.diagonal().mean()
    if mean == 0:
        return weight
    damped = exact + torch.eye(len(exact), dtype=exact.dtype, device=exact.device) * mean * damping
    lower, failed = torch.linalg.cholesky_ex(damped)
    if failed or not bool(lower.isfinite().all()):
        raise QuantizationFailed(
            f"the Gram matrix ({len(gram)} inputs) is not positive definite with damping {damping:g}, so that nothing "
            "can make up for what was rounded before it; raise quantizer.target_damping"
        )
    deviation = weight.double() @ (cross.double() - exact)
    return (weight.double() + torch.cholesky_solve(deviation.mT, lower).mT).to(weight.dtype)
