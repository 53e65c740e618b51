"""`contrastive-kl`: pull toward the aligned model, push away from its base (arXiv:2511.07842).

Every contrastive objective is L = pull − α·push, and **none is bounded below**. On one support, up to a constant,
L = −Σ (p_aligned − α·p_base) log p_Q: wherever p_aligned < α·p_base it pays to send p_Q to zero, so L → −∞. At α ≥ 1
there always is such a token (unless the two are equal). For α < 1 a finite optimum, where one exists, is
(p_aligned − α·p_base)/(1 − α): an extrapolation past the aligned model, not the aligned model itself. What keeps
learning sane is the limited freedom of the transforms; a learner must watch the pull.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from caq.objectives.base import Logits, Loss, Targets
from caq.options import Options

if TYPE_CHECKING:
    from torch import Tensor

Alpha = Annotated[float, Field(ge=0)]


class ContrastiveKullbackLeibler(Options):
    """KL(p_aligned ‖ p_Q) − α·KL(p_base ‖ p_Q) over the whole vocabulary; unbounded below (see the module).

    Attributes:
        alpha: weight of the push away from the base.
    """

    name: Literal["contrastive-kl"] = "contrastive-kl"
    alpha: Alpha = 0.75
    needs_base: ClassVar[bool] = True
    needs_full: ClassVar[bool] = True
    targets_options: ClassVar[tuple[str, ...]] = ()

    def targets(self, aligned: Logits, negative: Logits | None) -> dict[str, Tensor]:
        """Keep both teachers' logits."""
        return {"aligned": aligned, "negative": required(negative)}

    def __call__(self, student: Logits, targets: Targets, progress: float) -> Loss:
        """Return the contrast of both divergences."""
        from caq.objectives.support import kl

        log_prob = student.float().log_softmax(-1)
        pull, push = (kl(targets[name].float().log_softmax(-1), log_prob) for name in ("aligned", "negative"))
        return contrast(pull, push, self.alpha)


def contrast(pull: Tensor, push: Tensor, alpha: float) -> Loss:
    """Return pull − α·push."""
    return Loss(pull - alpha * push, pull.detach(), push.detach())


def required(negative: Logits | None) -> Logits:
    """Return the negative.

    Raises:
        ValueError: there is none.
    """
    if negative is None:
        raise ValueError("a contrastive objective needs the base model's logits")
    return negative
