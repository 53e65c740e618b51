"""`mse`: squared error of the logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from caq.objectives.base import Logits, Loss, Targets
from caq.options import Options

if TYPE_CHECKING:
    from torch import Tensor


class MeanSquaredError(Options):
    """Mean squared difference of the logits, over tokens and vocabulary."""

    name: Literal["mse"] = "mse"
    needs_base: ClassVar[bool] = False
    needs_full: ClassVar[bool] = True
    targets_options: ClassVar[tuple[str, ...]] = ()

    def targets(self, aligned: Logits, negative: Logits | None) -> dict[str, Tensor]:
        """Keep the aligned model's logits."""
        return {"aligned": aligned}

    def __call__(self, student: Logits, targets: Targets, progress: float) -> Loss:
        """Return mean (student − aligned)²."""
        error = (student.float() - targets["aligned"].float()).square().mean()
        return Loss(error, error.detach())
