"""`kl-top`, `contrastive-kl-top`, `cal`: objectives on a few tokens (arXiv:2511.07842, steps 3 and 4).

The two contrastive ones differ in the tokens that are pushed; both are unbounded below, as `contrast` explains.
"""

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
from caq.options import Options, Positive

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor


class TopKullbackLeibler(Options):
    """KL(p_aligned ‖ p_Q) on S_top, the `pull_k` likeliest tokens of the aligned model (OSTQuant, arXiv:2501.13987).

    Attributes:
        pull_k: size of S_top.
        renormalize: softmax restricted to S_top; otherwise full softmax, then gather.
    """

    name: Literal["kl-top"] = "kl-top"
    pull_k: Positive = 500
    renormalize: bool = True
    needs_negative: ClassVar[bool] = False
    negative: ClassVar[None] = None
    needs_full: ClassVar[bool] = False
    targets_options: ClassVar[tuple[str, ...]] = ("pull_k", "renormalize")

    def targets(self, teachers: Teachers) -> dict[str, Tensor]:
        """Keep S_top and log p_aligned on it."""
        from caq.objectives.support import restricted_log_probs, top_k

        index = top_k(teachers.aligned, self.pull_k)
        (log_prob,) = restricted_log_probs(teachers.aligned, index, renormalize=self.renormalize)
        return {"pull_index": index, "pull_log_prob": log_prob}

    def __call__(self, student: Logits, targets: Targets, progress: float) -> Loss:
        """Return the divergence on S_top."""
        from caq.objectives.support import kl, restricted_log_probs

        (log_prob,) = restricted_log_probs(student, targets["pull_index"], renormalize=self.renormalize)
        return pulled(kl(targets["pull_log_prob"], log_prob))


class ContrastiveTopKullbackLeibler(Options):
    """Pull on the top tokens of p_aligned, push on the top tokens of p_neg.

    Attributes:
        alpha: weight of the push away from the negative.
        alpha_schedule: how the weight rises from 0.
        negative: whom to push away from; None takes the base where there is one, and `rtn` otherwise.
        pull_k: how many of the aligned model's top tokens are pulled.
        push_k: how many of the negative's are pushed.
        renormalize: softmax restricted to those tokens; otherwise full softmax, then gather.
    """

    name: Literal["contrastive-kl-top"] = "contrastive-kl-top"
    alpha: Alpha = 0.75
    alpha_schedule: Schedule = "constant"
    negative: Negative | None = None
    pull_k: Positive = 500
    push_k: Positive = 500
    renormalize: bool = True
    needs_negative: ClassVar[bool] = True
    needs_full: ClassVar[bool] = False
    targets_options: ClassVar[tuple[str, ...]] = ("pull_k", "push_k", "renormalize")

    def targets(self, teachers: Teachers) -> dict[str, Tensor]:
        """Keep the top indices of each teacher and its log-probabilities on them."""
        from caq.objectives.support import top_k

        return _restricted_targets(self, teachers, top_k(teachers.contrasted(), self.push_k))

    def __call__(self, student: Logits, targets: Targets, progress: float) -> Loss:
        """Return the contrast of both divergences."""
        return _restricted_contrast(self, student, targets, progress)


class ContrastiveAlignment(Options):
    """CAL: KL(p_aligned^S_top ‖ p_Q^S_top) − α·KL(p_neg^S_diff ‖ p_Q^S_diff).

    Attributes:
        alpha: weight of the push away from the negative.
        alpha_schedule: how the weight rises from 0.
        negative: whom to push away from; None takes the base where there is one, and `rtn` otherwise.
        pull_k: size of S_top, the largest p_aligned.
        push_k: size of S_diff.
        difference: what S_diff ranks: |p_aligned − p_neg| (paper) or the logits' (the authors' code).
        renormalize: softmax restricted to S (paper); otherwise full softmax, then gather (the authors' code).
    """

    name: Literal["cal"] = "cal"
    alpha: Alpha = 0.75
    alpha_schedule: Schedule = "constant"
    negative: Negative | None = None
    pull_k: Positive = 500
    push_k: Positive = 500
    difference: Literal["probability", "logit"] = "probability"
    renormalize: bool = True
    needs_negative: ClassVar[bool] = True
    needs_full: ClassVar[bool] = False
    targets_options: ClassVar[tuple[str, ...]] = ("pull_k", "push_k", "difference", "renormalize")

    def targets(self, teachers: Teachers) -> dict[str, Tensor]:
        """Keep S_top with log p_aligned on it, and S_diff with log p_neg on it."""
        from caq.objectives.support import differing, top_k

        aligned, negative = teachers.aligned, teachers.contrasted()
        if self.difference == "probability":
            return _restricted_targets(self, teachers, differing(aligned, negative, self.push_k))
        gap = (aligned.float() - negative.float()).abs_()
        return _restricted_targets(self, teachers, top_k(gap, self.push_k))

    def __call__(self, student: Logits, targets: Targets, progress: float) -> Loss:
        """Return the contrast of both divergences."""
        return _restricted_contrast(self, student, targets, progress)


_Contrastive = ContrastiveTopKullbackLeibler | ContrastiveAlignment


def _restricted_targets(
    options: _Contrastive, teachers: Teachers, push_index: Int[Tensor, "tokens K"]
) -> dict[str, Tensor]:
    """Return both teachers' log-probabilities: on the aligned model's top tokens, and on those that are pushed."""
    from caq.objectives.support import restricted_log_probs, top_k

    pull_index = top_k(teachers.aligned, options.pull_k)
    (pull_log_prob,) = restricted_log_probs(teachers.aligned, pull_index, renormalize=options.renormalize)
    (push_log_prob,) = restricted_log_probs(teachers.contrasted(), push_index, renormalize=options.renormalize)
    pull = {"pull_index": pull_index, "pull_log_prob": pull_log_prob}
    return pull | {"push_index": push_index, "push_log_prob": push_log_prob}


def _restricted_contrast(options: _Contrastive, student: Logits, targets: Targets, progress: float) -> Loss:
    from caq.objectives.support import kl, restricted_log_probs

    pull_log_prob, push_log_prob = restricted_log_probs(
        student, targets["pull_index"], targets["push_index"], renormalize=options.renormalize
    )
    pull, push = kl(targets["pull_log_prob"], pull_log_prob), kl(targets["push_log_prob"], push_log_prob)
    return contrast(pull, push, scheduled(options.alpha, options.alpha_schedule, progress))
