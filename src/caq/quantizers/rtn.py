"""Round to nearest: every weight on its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from jaxtyping import Float

from caq.options import Options, Positive, PositiveFloat
from caq.quantizers.base import InputStatistics, Quantized

if TYPE_CHECKING:
    import torch
    from compressed_tensors.quantization import QuantizationArgs
    from torch import Tensor


class RoundToNearest(Options):
    """Round to nearest, from the range or from searched clips.

    Attributes:
        clip_search: search the clip that minimises the weights' error.
        clip_norm: the error's exponent.
        clip_steps: clips tried.
    """

    name: Literal["rtn"] = "rtn"
    clip_search: bool = True
    clip_norm: PositiveFloat = 2.4
    clip_steps: Positive = 80
    statistics: ClassVar[InputStatistics | None] = None

    def quantize(
        self,
        weight: Float[Tensor, "out in"],
        gram: Float[Tensor, "in in"] | None,
        args: QuantizationArgs,
        scale_dtype: torch.dtype,
    ) -> Quantized:
        """Return the rounded weight; `gram` is not used."""
        from caq.numerics.codes import quantize_codes
        from caq.quantizers.clip import clipped_parameters

        steps = self.clip_steps if self.clip_search else 1
        parameters = clipped_parameters(weight, args, scale_dtype, norm=self.clip_norm, steps=steps)
        return Quantized(quantize_codes(weight, parameters, args), parameters, args)
