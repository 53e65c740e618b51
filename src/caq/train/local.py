"""`local`: the folded transforms under a second-order model of what rounding costs. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from caq.options import Options, Positive, PositiveFloat
from caq.train.learner import FitInputs, FitResult

if TYPE_CHECKING:
    from torch import Tensor


class Local(Options):
    """Adam on the parameters of every transform under J, the second-order model of KL(aligned || quantized).

    One forward and one backward pass of the aligned model gives what J needs; no step runs a model or rounds a number.

    Attributes:
        steps: optimiser steps.
        tokens: calibration tokens that are looked at, in whole sequences; null takes all that are not validated on.
        batch_tokens: of them, drawn for each step.
        rotation_learning_rate: for the rotations, decaying linearly to 0.
        scaling_learning_rate: for all other transforms, decaying linearly to 0.
        means: J of an activation is the mean noise times the mean sensitivity (`apart`), or the mean of their product
            (`together`), which is exact for independent noise but follows single tokens.
        weight_term: how much the rounding of weights counts, 1 being rounding to nearest; null leaves it out where
            activations are rounded, and takes what GPTQ leaves of it, 0.35, where only weights are.
        validation_samples: sequences of `data.samples` that are kept from learning.
    """

    name: Literal["local"] = "local"
    steps: Positive = 200
    tokens: Positive | None = 8192
    batch_tokens: Positive = 256
    rotation_learning_rate: PositiveFloat = 0.01
    scaling_learning_rate: PositiveFloat = 0.02
    means: Literal["apart", "together"] = "apart"
    weight_term: PositiveFloat | None = None
    validation_samples: Positive = 4
    needs_teacher: ClassVar[bool] = True
    needs_prompts: ClassVar[bool] = False
    after_rounding: ClassVar[bool] = False
    quantize_weights: ClassVar[bool] = True
    #: Of a forward pass, which only the validation runs.
    micro_batch_size: ClassVar[int] = 1

    def learn(self, inputs: FitInputs, start: Mapping[str, Tensor]) -> FitResult:
        """Learn every transform's parameter that J depends on; the others stay as they are.

        Where the result has no lower pull term on the validation sequences than the start, the start is kept, with an
        entry for the ledger.

        Raises:
            Unsupported: activations are rounded where J cannot follow them.
        """
        from caq.train.local_fit import fit

        return fit(self, inputs, start)
