"""`refine`: what the rounded model stores beside its codes, under the objective on the model's own logits.

Scales alone, learned end to end after rounding, are the second phase of EfficientQAT (arXiv:2407.11062), there under
cross-entropy with activations in 16 bits; the gains of norms, after rounding, are Norm Tweaking's (arXiv:2309.02784).
Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import model_validator

from caq.ledger import Entry
from caq.options import Options, Positive, PositiveFloat
from caq.train.learner import FitInputs, FitResult, require_whole_micro_batches

if TYPE_CHECKING:
    from torch import Tensor


class Refine(Options):
    """Adam on the weights' scales, the norms' gains and the linears' biases of the rounded model; codes stay.

    Activations are rounded as they will be. The final norm and the head, which are not rounded, stay, too.

    Attributes:
        steps: optimiser steps.
        batch_size: sequences per step.
        micro_batch_size: sequences per forward pass; a step accumulates over them.
        learning_rate: in shares of each value, decaying linearly to 0.
        gradient_clip: largest gradient norm.
        gradient_checkpointing: recompute each block in the backward pass; a third slower, one block's memory.
        evaluate_every: steps between looks at the validation sequences.
        validation_samples: sequences of `data.samples` that are kept from learning.
    """

    name: Literal["refine"] = "refine"
    steps: Positive = 100
    batch_size: Positive = 4
    micro_batch_size: Positive = 1
    learning_rate: PositiveFloat = 0.003
    gradient_clip: PositiveFloat = 1.0
    gradient_checkpointing: bool = True
    evaluate_every: Positive = 10
    validation_samples: Positive = 4
    keep: ClassVar[str] = "best"
    needs_teacher: ClassVar[bool] = True
    quantize_weights: ClassVar[bool] = True
    needs_prompts: ClassVar[bool] = False
    after_rounding: ClassVar[bool] = True

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> Self:
        require_whole_micro_batches(self.batch_size, self.micro_batch_size)
        return self

    def learn(self, inputs: FitInputs, start: Mapping[str, Tensor]) -> FitResult:
        """Learn every parameter of the rounded model.

        The step that is kept is the one with the lowest pull term on the validation sequences. If none is better than
        the start, the start is kept, with an entry for the ledger: the rounded model is a result, too.
        """
        from caq.train.loop import fit
        from caq.train.rounded import is_of_codes

        if inputs.rounded is None:
            raise ValueError("refine learns the rounded model, and there is none yet")
        moves = {name: value for name, value in start.items() if is_of_codes(name)}
        own = {name: value for name, value in start.items() if name not in moves}
        rounded = replace(inputs.rounded.patched(moves), checkpointing=self.gradient_checkpointing)
        result = fit(self, replace(inputs, rounded=rounded), own, dict.fromkeys(own, self.learning_rate))
        result = replace(result, parameters={**result.parameters, **moves})
        if result.best_step:
            return result
        message = f"{self.name} found no step better than its start, which stays as it is"
        entry = Entry("fit", "not-refined", message, {"pull": result.history[0]["pull"]})
        return replace(result, entries=(*result.entries, entry))
