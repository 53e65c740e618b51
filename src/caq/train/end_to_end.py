"""`end-to-end`: all transforms at once, under the objective on the model's own logits. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import model_validator

from caq.errors import Diverged
from caq.options import Options, Positive, PositiveFloat
from caq.train.learner import FitInputs, FitResult, require_whole_micro_batches

if TYPE_CHECKING:
    from torch import Tensor

    from caq.objectives import Objective


class EndToEnd(Options):
    """Adam on the parameters of every transform.

    Attributes:
        steps: optimiser steps.
        batch_size: sequences per step.
        micro_batch_size: sequences per forward pass; a step accumulates over them.
        rotation_learning_rate: for the rotations, decaying linearly to 0.
        scaling_learning_rate: for all other transforms, decaying linearly to 0.
        gradient_clip: largest gradient norm.
        quantize_weights: fake-quantize the weights too while learning.
        gradient_checkpointing: recompute each block in the backward pass; a third slower, one block's memory.
        evaluate_every: steps between looks at the validation sequences.
        validation_samples: sequences of `data.samples` that are kept from learning.
        keep: which step's parameters are folded: the one with the lowest pull term on the validation sequences, or
            the last, however high the pull (what the paper and its code do; their ablations need it).
    """

    name: Literal["end-to-end"] = "end-to-end"
    steps: Positive = 100
    batch_size: Positive = 4
    micro_batch_size: Positive = 1
    rotation_learning_rate: PositiveFloat = 0.01
    scaling_learning_rate: PositiveFloat = 0.01
    gradient_clip: PositiveFloat = 1.0
    quantize_weights: bool = False
    gradient_checkpointing: bool = True
    evaluate_every: Positive = 10
    validation_samples: Positive = 4
    keep: Literal["best", "last"] = "best"
    needs_teacher: ClassVar[bool] = True
    needs_prompts: ClassVar[bool] = False
    after_rounding: ClassVar[bool] = False

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> Self:
        require_whole_micro_batches(self.batch_size, self.micro_batch_size)
        return self

    def learn(self, inputs: FitInputs, start: Mapping[str, Tensor]) -> FitResult:
        """Learn every transform's parameter.

        The last `validation_samples` sequences are kept from learning; the best step is the one with the lowest pull
        term on them. The loss would not do: a contrastive one is unbounded below, and falls for a model that leaves
        the aligned one.

        Raises:
            Diverged: no evaluated step is better than the start, or the loss is not a number and the last step was
                asked for.
        """
        from caq.train.loop import fit, rates_of

        weight_format = inputs.student.weight_format if self.quantize_weights else None
        student = replace(inputs.student, weight_format=weight_format, checkpointing=self.gradient_checkpointing)
        rates = rates_of(student.plan, start, self)
        result = fit(self, replace(inputs, student=student), start, rates)
        if result.best_step == 0 or (self.keep == "last" and result.best_step < self.steps):
            raise self._diverged(inputs.objective, result)
        return result

    def _diverged(self, objective: Objective, result: FitResult) -> Diverged:
        failed = "found no step better than the start" if self.keep == "best" else "did not reach its last step"
        reasons = "".join(f"; {entry.message}" for entry in result.entries)
        or_alpha = ", or objective.alpha" if hasattr(objective, "alpha") else ""
        return Diverged(
            f"learning {failed} (validation history: {list(result.history)}){reasons}; lower "
            f"learn.{self.name}.rotation_learning_rate and learn.{self.name}.scaling_learning_rate{or_alpha}, "
            "and give --restart"
        )
