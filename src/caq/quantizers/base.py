"""What a quantizer is: a folded weight and its inputs' statistics in, integer codes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from compressed_tensors.quantization import QuantizationArgs
from jaxtyping import Float, Int8
from torch import Tensor

from caq.ledger import Entry
from caq.numerics.fake import dequantize


@dataclass(frozen=True)
class Quantized:
    """One quantized weight.

    Attributes:
        codes: signed integers.
        scale: one per output channel or group, in the precision in which it is stored.
        zero_point: int8, zeros if symmetric.
        args: the format.
        entries: departures for the ledger.
    """

    codes: Int8[Tensor, "out in"]
    scale: Float[Tensor, "out groups"]
    zero_point: Int8[Tensor, "out groups"]
    args: QuantizationArgs
    entries: tuple[Entry, ...] = ()

    def weight(self) -> Float[Tensor, "out in"]:
        """Return the values that the codes stand for, in the scale's precision."""
        return dequantize(self.codes, self.scale, self.zero_point, self.args)


class Quantizer(Protocol):
    """Rounds a weight."""

    @property
    def needs_gram(self) -> bool:
        """Whether `quantize` uses the Gram matrix of the inputs."""

    def quantize(
        self,
        weight: Float[Tensor, "out in"],
        gram: Float[Tensor, "in in"] | None,
        args: QuantizationArgs,
    ) -> Quantized:
        """Return the rounded weight.

        Args:
            weight: folded weights, of any number of linears that read the same input, stacked.
            gram: mean of `x^T x` over the calibration tokens, float32.
            args: the weights' format, strategy `channel` or `group`.
        """
