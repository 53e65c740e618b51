"""`mse`, `kl`, `contrastive-kl`: objectives on whole rows of logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from caq.objectives.base import (
    Alpha,
    Logits,
    Loss,
    Negative,
    Schedule,
    Targets,
    Teachers,
    contrast,
    pulled,
    scheduled,
)
from caq.options import Options

if TYPE_CHECKING:
    from torch import Tensor


class MeanSquaredError(Options):
    """Mean squared difference of the logits over the vocabulary."""

    name: Literal["mse"] = "mse"
    needs_negative: ClassVar[bool] = False
    negative: ClassVar[None] = None
    needs_full: ClassVar[bool] = True
    targets_options: ClassVar[tuple[str, ...]] = ()

    def targets(self, teachers: Teachers) -> dict[str, Tensor]:
        """Keep the aligned model's logits."""
        return {"aligned": teachers.aligned}

    def __call__(self, student: Logits, targets: Targets, progress: float) -> Loss:
        """Return mean (student − aligned)²."""
        return pulled((student.float() - targets["aligned"].float()).square().mean(-1))


class KullbackLeibler(Options):
    """KL(p_aligned ‖ p_Q) over the whole vocabulary."""

    name: Literal["kl"] = "kl"
    needs_negative: ClassVar[bool] = False
    negative: ClassVar[None] = None
    needs_full: ClassVar[bool] = True
    targets_options: ClassVar[tuple[str, ...]] = ()

    def targets(self, teachers: Teachers) -> dict[str, Tensor]:
        """Keep the aligned model's logits."""
        return {"aligned": teachers.aligned}

    def __call__(self, student: Logits, targets: Targets, progress: float) -> Loss:
        """Return KL(p_aligned ‖ p_Q)."""
        from caq.objectives.support import kl

        return pulled(kl(targets["aligned"].float().log_softmax(-1), student.float().log_softmax(-1)))


class ContrastiveKullbackLeibler(Options):
    """KL(p_aligned ‖ p_Q) − α·KL(p_neg ‖ p_Q) over the whole vocabulary; unbounded below (see `contrast`).

    Attributes:
        alpha: weight of the push away from the negative.
        alpha_schedule: how the weight rises from 0.
        negative: whom to push away from; None takes the base where there is one, and `rtn` otherwise.
    """

    name: Literal["contrastive-kl"] = "contrastive-kl"
    alpha: Alpha = 0.75
    alpha_schedule: Schedule = "constant"
    negative: Negative | None = None
    needs_negative: ClassVar[bool] = True
    needs_full: ClassVar[bool] = True
    targets_options: ClassVar[tuple[str, ...]] = ()

    def targets(self, teachers: Teachers) -> dict[str, Tensor]:
        """Keep both teachers' logits."""
        return {"aligned": teachers.aligned, "negative": teachers.contrasted()}

    def __call__(self, student: Logits, targets: Targets, progress: float) -> Loss:
        """Return the contrast of both divergences."""
        from caq.objectives.support import kl

        log_prob = student.float().log_softmax(-1)
        pull, push = (kl(targets[name].float().log_softmax(-1), log_prob) for name in ("aligned", "negative"))
        return contrast(pull, push, scheduled(self.alpha, self.alpha_schedule, progress))
