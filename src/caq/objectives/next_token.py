"""`cross-entropy`: the calibration text itself is the target, and no teacher is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from caq.objectives.base import UNLABELLED, Logits, Loss, Targets, Teachers, pulled
from caq.options import Options

if TYPE_CHECKING:
    from torch import Tensor


class CrossEntropy(Options):
    """−log p_Q of the next token of the calibration text, over the whole vocabulary (SpinQuant, arXiv:2405.16406).

    The last token of a sequence has no next one and counts 0. The aligned model is not its optimum: what the text has
    and the model would not say is learned too.
    """

    name: Literal["cross-entropy"] = "cross-entropy"
    needs_negative: ClassVar[bool] = False
    negative: ClassVar[None] = None
    needs_full: ClassVar[bool] = False
    targets_options: ClassVar[tuple[str, ...]] = ()

    def targets(self, teachers: Teachers) -> dict[str, Tensor]:
        """Keep the next token, int64.

        Raises:
            ValueError: there are no labels.
        """
        if teachers.labels is None:
            raise ValueError("cross-entropy needs the tokens of the calibration text")
        return {"label": teachers.labels}

    def __call__(self, student: Logits, targets: Targets, progress: float) -> Loss:
        """Return the next token's negative log-likelihood."""
        from torch.nn.functional import cross_entropy

        return pulled(cross_entropy(student.float(), targets["label"], ignore_index=UNLABELLED, reduction="none"))
