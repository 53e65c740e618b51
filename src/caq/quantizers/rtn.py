"""Round to nearest: every weight on its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from compressed_tensors.quantization import QuantizationArgs
from jaxtyping import Float
from torch import Tensor

from caq.numerics.fake import quantize_codes
from caq.quantizers.base import Quantized
from caq.quantizers.clip import ClipSearch, range_parameters


@dataclass(frozen=True)
class RoundToNearest:
    """Round to nearest, from the range or from searched clips.

    Attributes:
        scale_dtype: the precision in which scales are stored.
        clip: the clip search, or None for the full range.
    """

    scale_dtype: torch.dtype
    clip: ClipSearch | None
    needs_gram: ClassVar[bool] = False

    def quantize(
        self, weight: Float[Tensor, "out in"], gram: Float[Tensor, "in in"] | None, args: QuantizationArgs
    ) -> Quantized:
        """Return the rounded weight; `gram` is not used."""
        find = self.clip.parameters if self.clip else range_parameters
        scale, zero_point = find(weight, args, self.scale_dtype)
        return Quantized(quantize_codes(weight, scale, zero_point, args), scale, zero_point, args)
