"""`jensen-shannon`, `positive-part`: contrasts that are bounded below whatever the student does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from caq.objectives.base import Alpha, Logits, Loss, Negative, Schedule, Targets, Teachers, contrast, scheduled
from caq.options import Options, Positive

if TYPE_CHECKING:
    from torch import Tensor


class JensenShannon(Options):
    """KL(p_aligned^S_top ‖ p_Q^S_top) − α·JS_s(p_neg^S_diff ‖ p_Q^S_diff), with a push that saturates.

    JS_s(p ‖ q) = s·KL(p ‖ m) + (1 − s)·KL(q ‖ m) with m = s·p + (1 − s)·q is at most the entropy H(s) of the skew, so
    the loss is at least −α·H(s), −α·ln 2 at s = ½. At p_Q = p_aligned = q its gradient is
    −α·(1 − s)·q·(log(q/m) − KL(q ‖ m)) on S_diff: it is **not stationary** unless the negative equals the aligned
    model there, though no token can pay without end, as one does under `cal`.

    Attributes:
        alpha: weight of the push away from the negative.
        alpha_schedule: how the weight rises from 0.
        skew: the negative's share s of the mixture.
        negative: whom to push away from; None takes the base where there is one, and `rtn` otherwise.
        pull_k: size of S_top, the largest p_aligned.
        push_k: size of S_diff, the largest |p_aligned − p_neg|.
    """

    name: Literal["jensen-shannon"] = "jensen-shannon"
    alpha: Alpha = 0.75
    alpha_schedule: Schedule = "constant"
    skew: Annotated[float, Field(gt=0, lt=1)] = 0.5
    negative: Negative | None = None
    pull_k: Positive = 500
    push_k: Positive = 500
    needs_negative: ClassVar[bool] = True
    needs_full: ClassVar[bool] = False
    targets_options: ClassVar[tuple[str, ...]] = ("pull_k", "push_k")

    def targets(self, teachers: Teachers) -> dict[str, Tensor]:
        """Keep S_top with log p_aligned on it, and S_diff with log p_neg on it."""
        from caq.objectives.support import differing, restricted_log_probs, top_k

        aligned, negative = teachers.aligned, teachers.contrasted()
        pull_index, push_index = top_k(aligned, self.pull_k), differing(aligned, negative, self.push_k)
        (pull_log_prob,) = restricted_log_probs(aligned, pull_index)
        (push_log_prob,) = restricted_log_probs(negative, push_index)
        pull = {"pull_index": pull_index, "pull_log_prob": pull_log_prob}
        return pull | {"push_index": push_index, "push_log_prob": push_log_prob}

    def __call__(self, student: Logits, targets: Targets, progress: float) -> Loss:
        """Return the contrast of the divergence and the skewed one."""
        from caq.objectives.support import jensen_shannon, kl, restricted_log_probs

        pull_log_prob, push_log_prob = restricted_log_probs(student, targets["pull_index"], targets["push_index"])
        pull = kl(targets["pull_log_prob"], pull_log_prob)
        push = jensen_shannon(targets["push_log_prob"], push_log_prob, self.skew)
        return contrast(pull, push, scheduled(self.alpha, self.alpha_schedule, progress))


class PositivePart(Options):
    """KL(t ‖ p_Q) on S_top, where t is the positive part of p_aligned − α·p_neg, normalised.

    Where every token has p_aligned ≥ α·p_neg, t is the finite optimum of the contrast on one support,
    (p_aligned − α·p_neg)/(1 − α); elsewhere it is what is left of it. Bounded below by 0, at p_Q = t. At
    p_Q = p_aligned the gradient is p_aligned − t: it is **not stationary** unless α is 0 or the negative equals the
    aligned model on S_top.

    Attributes:
        alpha: how much of the negative is taken away; below 1, so that something is left.
        alpha_schedule: how it rises from 0.
        negative: whom to push away from; None takes the base where there is one, and `rtn` otherwise.
        pull_k: size of S_top, the largest p_aligned, on which all three are normalised.
    """

    name: Literal["positive-part"] = "positive-part"
    alpha: Annotated[float, Field(ge=0, lt=1)] = 0.75
    alpha_schedule: Schedule = "constant"
    negative: Negative | None = None
    pull_k: Positive = 500
    needs_negative: ClassVar[bool] = True
    needs_full: ClassVar[bool] = False
    targets_options: ClassVar[tuple[str, ...]] = ("pull_k",)

    def targets(self, teachers: Teachers) -> dict[str, Tensor]:
        """Keep S_top with both teachers' log-probabilities on it."""
        from caq.objectives.support import restricted_log_probs, top_k

        index = top_k(teachers.aligned, self.pull_k)
        (pull_log_prob,) = restricted_log_probs(teachers.aligned, index)
        (push_log_prob,) = restricted_log_probs(teachers.contrasted(), index)
        return {"pull_index": index, "pull_log_prob": pull_log_prob, "push_log_prob": push_log_prob}

    def __call__(self, student: Logits, targets: Targets, progress: float) -> Loss:
        """Return the divergence from the positive part; the pull is the one from the aligned model."""
        from torch.special import xlogy

        from caq.objectives.support import kl, restricted_log_probs

        alpha = scheduled(self.alpha, self.alpha_schedule, progress)
        left = (targets["pull_log_prob"].exp() - alpha * targets["push_log_prob"].exp()).relu()
        target = left / left.sum(-1, keepdim=True)
        (log_prob,) = restricted_log_probs(student, targets["pull_index"])
        total = (xlogy(target, target) - target * log_prob).sum(-1)
        return Loss(total, kl(targets["pull_log_prob"], log_prob).detach())
