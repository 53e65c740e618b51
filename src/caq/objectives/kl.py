"""`kl`: the Kullback-Leibler divergence over the whole vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from caq.objectives.base import Logits, Loss, Targets
from caq.options import Options

if TYPE_CHECKING:
    from torch import Tensor


class KullbackLeibler(Options):
    """KL(p_aligned ‖ p_Q) over the whole vocabulary."""

    name: Literal["kl"] = "kl"
    needs_base: ClassVar[bool] = False
    needs_full: ClassVar[bool] = True
    targets_options: ClassVar[tuple[str, ...]] = ()

    def targets(self, aligned: Logits, negative: Logits | None) -> dict[str, Tensor]:
        """Keep the aligned model's logits."""
        return {"aligned": aligned}

    def __call__(self, student: Logits, targets: Targets, progress: float) -> Loss:
        """Return KL(p_aligned ‖ p_Q)."""
        from caq.objectives.support import kl

        aligned = targets["aligned"].float().log_softmax(-1)
        pull = kl(aligned, student.float().log_softmax(-1))
        return Loss(pull, pull.detach())
