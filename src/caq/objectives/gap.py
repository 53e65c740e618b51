"""`hinge`, `sigmoid-gap`: objectives that push only as far as the aligned model itself is from its negative.

Both are of the gap that is left, g = KL(p_neg ‖ p_aligned) − KL(p_neg ‖ p_Q) on S_diff, which is negative where the
student is farther from the negative than the aligned model. They keep the same targets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from caq.objectives.base import Alpha, Logits, Loss, Negative, Schedule, Targets, Teachers, scheduled
from caq.options import Options, Positive, PositiveFloat

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class Hinge(Options):
    """KL(p_aligned^S_top ‖ p_Q^S_top) + α·max(0, g): a push that ends where the aligned model stands.

    Bounded below by 0, which p_Q = p_aligned attains: both terms are at their least there, so it is **stationary**. The
    hinge has its kink at that point: 0 is among its subgradients, and the one that is taken.

    Attributes:
        alpha: weight of the push away from the negative.
        alpha_schedule: how the weight rises from 0.
        negative: whom to push away from; None takes the base where there is one, and `rtn` otherwise.
        pull_k: size of S_top, the largest p_aligned.
        push_k: size of S_diff, the largest |p_aligned − p_neg|.
    """

    name: Literal["hinge"] = "hinge"
    alpha: Alpha = 0.75
    alpha_schedule: Schedule = "constant"
    negative: Negative | None = None
    pull_k: Positive = 500
    push_k: Positive = 500
    needs_negative: ClassVar[bool] = True
    needs_full: ClassVar[bool] = False
    targets_options: ClassVar[tuple[str, ...]] = ("pull_k", "push_k")

    def targets(self, teachers: Teachers) -> dict[str, Tensor]:
        """Keep S_top with log p_aligned on it, and S_diff with both teachers' on it."""
        return _targets(self, teachers)

    def __call__(self, student: Logits, targets: Targets, progress: float) -> Loss:
        """Return the pull and the hinge of the gap."""
        pull, push, gap = _terms(student, targets)
        alpha = scheduled(self.alpha, self.alpha_schedule, progress)
        return Loss(pull + alpha * gap.relu(), pull.detach(), push.detach())


class SigmoidGap(Options):
    """KL(p_aligned^S_top ‖ p_Q^S_top) + (2α/β)·log(1 + exp(β·g)): the push fades as the gap closes.

    As NPO does for unlearning (arXiv:2404.05868, eq. 3): g is the mean of log(p_Q/p_aligned) under the negative, and
    the gradient is that of `cal`'s push times 2σ(β·g). Bounded below by 0. At p_Q = p_aligned that factor is 1, and the
    gradient is `cal`'s own, α·(p_neg − p_aligned) on S_diff: it is **not stationary** unless the negative equals the
    aligned model there; it is pushed past, and less and less. As β → 0 the objective becomes `cal` up to a constant.

    Attributes:
        alpha: weight of the push away from the negative.
        alpha_schedule: how the weight rises from 0.
        beta: how fast the push fades, per nat of the gap.
        negative: whom to push away from; None takes the base where there is one, and `rtn` otherwise.
        pull_k: size of S_top, the largest p_aligned.
        push_k: size of S_diff, the largest |p_aligned − p_neg|.
    """

    name: Literal["sigmoid-gap"] = "sigmoid-gap"
    alpha: Alpha = 0.75
    alpha_schedule: Schedule = "constant"
    beta: PositiveFloat = 1.0
    negative: Negative | None = None
    pull_k: Positive = 500
    push_k: Positive = 500
    needs_negative: ClassVar[bool] = True
    needs_full: ClassVar[bool] = False
    targets_options: ClassVar[tuple[str, ...]] = ("pull_k", "push_k")

    def targets(self, teachers: Teachers) -> dict[str, Tensor]:
        """Keep S_top with log p_aligned on it, and S_diff with both teachers' on it."""
        return _targets(self, teachers)

    def __call__(self, student: Logits, targets: Targets, progress: float) -> Loss:
        """Return the pull and the softplus of the gap."""
        from torch.nn.functional import softplus

        pull, push, gap = _terms(student, targets)
        weight = 2 * scheduled(self.alpha, self.alpha_schedule, progress) / self.beta
        return Loss(pull + weight * softplus(self.beta * gap), pull.detach(), push.detach())


def _targets(options: Hinge | SigmoidGap, teachers: Teachers) -> dict[str, Tensor]:
    from caq.objectives.support import differing, restricted_log_probs, top_k

    aligned, negative = teachers.aligned, teachers.contrasted()
    pull_index, push_index = top_k(aligned, options.pull_k), differing(aligned, negative, options.push_k)
    pull_log_prob, push_aligned_log_prob = restricted_log_probs(aligned, pull_index, push_index)
    (push_log_prob,) = restricted_log_probs(negative, push_index)
    pull = {"pull_index": pull_index, "pull_log_prob": pull_log_prob}
    push = {"push_index": push_index, "push_log_prob": push_log_prob}
    return pull | push | {"push_aligned_log_prob": push_aligned_log_prob}


def _terms(
    student: Logits, targets: Targets
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
    """Return KL(p_aligned ‖ p_Q) on S_top, KL(p_neg ‖ p_Q) on S_diff, and the gap that is left of it."""
    from caq.objectives.support import kl, restricted_log_probs

    pull_log_prob, push_log_prob = restricted_log_probs(student, targets["pull_index"], targets["push_index"])
    push = kl(targets["push_log_prob"], push_log_prob)
    gap = kl(targets["push_log_prob"], targets["push_aligned_log_prob"]) - push
    return kl(targets["pull_log_prob"], pull_log_prob), push, gap
