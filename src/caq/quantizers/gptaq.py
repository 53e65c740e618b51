"""GPTAQ: GPTQ of the weights that repeat the full-precision model's outputs on the quantized model's inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from jaxtyping import Float
from pydantic import model_validator

from caq.options import Options, Positive, PositiveFloat
from caq.quantizers.base import InputStatistics, Quantized
from caq.quantizers.gptq import Gptq

if TYPE_CHECKING:
    import torch
    from compressed_tensors.quantization import QuantizationArgs
    from torch import Tensor


class Gptaq(Options):
    """GPTQ with asymmetric calibration (arXiv:2504.02692), in the closed form of `caq.quantizers.target`.

    Attributes:
        target_damping: share of the Gram matrix's mean diagonal that holds the weights that are rounded near to the
            model's own. With little, they are fitted to the calibration text.
        block_size, damping, max_damping, clip_search, clip_norm, clip_steps, quantized_statistics, samples: as `gptq`.
    """

    name: Literal["gptaq"] = "gptaq"
    target_damping: PositiveFloat = 1.0
    block_size: Positive = 128
    damping: PositiveFloat = 0.01
    max_damping: PositiveFloat = 1.0
    clip_search: bool = True
    clip_norm: PositiveFloat = 2.4
    clip_steps: Positive = 80
    quantized_statistics: bool = True
    samples: Positive | None = None

    @model_validator(mode="after")
    def _rounding_accepts(self) -> Self:
        """Refuse what GPTQ refuses."""
        self.rounding()
        return self

    def rounding(self) -> Gptq:
        """Return what rounds the weights once they are changed."""
        return Gptq.model_validate(self.model_dump(exclude={"name", "target_damping"}))

    @property
    def statistics(self) -> InputStatistics:
        """What its matrices are made of."""
        return InputStatistics(self.samples, self.quantized_statistics, self.target_damping)

    def quantize(
        self,
        weight: Float[Tensor, "out in"],
        gram: Float[Tensor, "in in"] | None,
        args: QuantizationArgs,
        scale_dtype: torch.dtype,
    ) -> Quantized:
        """Return the rounded weight, as GPTQ does.

        Raises:
            QuantizationFailed: as GPTQ.
        """
        return self.rounding().quantize(weight, gram, args, scale_dtype)
