"""`q-resafe`: codes of the weights that matter to the aligned model's answers, under a preference for those answers.

Q-resafe (arXiv:2506.20251) patches a quantized model: by DPO (arXiv:2305.18290) it comes to prefer what its
full-precision model answers to what it answers itself, and only its safety-critical weights change, those with the
highest SNIP scores (arXiv:1810.02340). What differs here:

- Prompts are the bundled, generic ones, and no safety set is needed; harmful ones are for `data.prompts` to name.
  Answers are greedy and short, and pairs of equal answers, which tell nothing, are dropped.
- A delta is dense and rounded, straight through, onto the grid that is stored, with the scales that are stored: the
  checkpoint stays what it was but for codes. The paper's delta is of low rank (128 in its code).
- Scores are taken once, before the first step, within each linear. The paper takes them anew every so many steps.
- `share`, `steps` and `learning_rate` are ours; `beta` is DPO's customary one (its code has 0.01).

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from caq.options import Options, Positive, PositiveFloat
from caq.train.learner import FitInputs, FitResult, require_whole_micro_batches

if TYPE_CHECKING:
    from torch import Tensor


class QResafe(Options):
    """Adam on the codes of the rounded model's critical weights, under DPO; all else stays.

    Every weight has a delta, its gradient and Adam's two moments in float32, and a byte says whether it may change:
    17 bytes a weight on the device.

    Attributes:
        steps: optimiser steps.
        batch_size: pairs per step.
        micro_batch_size: pairs per forward pass; a step accumulates over them.
        learning_rate: in scales of each weight, decaying linearly to 0; a code changes where half a scale is crossed.
        beta: of DPO: how much a preference weighs against staying near the model as it was rounded.
        share: of each linear's weights, those with the highest scores, which may change.
        prompt_samples: prompts that are asked; of more, the seed draws so many.
        response_tokens: longest answer.
        gradient_checkpointing: recompute each block in the backward pass; a third slower, one block's memory.
        evaluate_every: steps between looks at the validation sequences and at all pairs.
        validation_samples: sequences of `data.samples` that are kept for validation.
    """

    name: Literal["q-resafe"] = "q-resafe"
    steps: Positive = 40
    batch_size: Positive = 16
    micro_batch_size: Positive = 1
    learning_rate: PositiveFloat = 0.1
    beta: PositiveFloat = 0.1
    share: Annotated[float, Field(gt=0, le=1)] = 0.02
    prompt_samples: Positive = 128
    response_tokens: Positive = 32
    gradient_checkpointing: bool = True
    evaluate_every: Positive = 10
    validation_samples: Positive = 4
    needs_teacher: ClassVar[bool] = True
    needs_prompts: ClassVar[bool] = True
    quantize_weights: ClassVar[bool] = True
    after_rounding: ClassVar[bool] = True

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> Self:
        require_whole_micro_batches(self.batch_size, self.micro_batch_size)
        return self

    def learn(self, inputs: FitInputs, start: Mapping[str, Tensor]) -> FitResult:
        """Learn which codes the critical weights have; the parameters get those of the codes beside `start`'s.

        The last step is kept, whatever the validation says: it is the method's result. Where the pull term rose there,
        an entry of the ledger says so. Where the models' answers hardly differ, nothing changes, with an entry, too.
        The history has, beside the loss's terms, `dpo`, the mean over all pairs, their number, `pairs`, and the share
        of all codes that are not as they were rounded, `changed`.

        Raises:
            Diverged: the loss is not a number.
        """
        from caq.train.q_resafe_fit import fit

        return fit(self, inputs, start)
