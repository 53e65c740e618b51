"""`blockwise`: one block after another, each to give what it gives in full precision. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from caq.options import Options, Positive, PositiveFloat
from caq.train.learner import FitInputs, FitResult

if TYPE_CHECKING:
    from torch import Tensor


class Blockwise(Options):
    """Adam on the parameters of one block's transforms at a time; memory is one block's.

    A block is given what the full-precision blocks before it put out, as FlatQuant gives it (arXiv:2410.09426), and not
    what quantized ones do: no block learns to make up for another. The residual rotation, which all of them share,
    stays as it is.

    Attributes:
        epochs: passes over the sequences, per block.
        batch_size: sequences per step.
        learning_rate: of every parameter, decaying to 0 along a cosine.
        quantize_weights: fake-quantize the weights too while learning.
        validation_samples: sequences of `data.samples` that are kept from learning.
    """

    name: Literal["blockwise"] = "blockwise"
    epochs: Positive = 15
    batch_size: Positive = 4
    learning_rate: PositiveFloat = 0.005
    quantize_weights: bool = False
    validation_samples: Positive = 4
    needs_teacher: ClassVar[bool] = False
    needs_prompts: ClassVar[bool] = False
    after_rounding: ClassVar[bool] = False
    #: Sequences that are run at once where nothing is learned.
    micro_batch_size: ClassVar[int] = 1

    def learn(self, inputs: FitInputs, start: Mapping[str, Tensor]) -> FitResult:
        """Learn the parameters of each block's own transforms.

        A block keeps its start, with an entry in the ledger, where that leaves the lower error on the validation
        sequences. The result's steps are blocks; where there are the objective's targets, its history is of the
        whole model, before the first block and after the last.
        """
        from caq.train.reconstruction import reconstruct

        weight_format = inputs.student.weight_format if self.quantize_weights else None
        student = replace(inputs.student, weight_format=weight_format)
        return reconstruct(self, replace(inputs, student=student), start)
