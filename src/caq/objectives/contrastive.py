"""Objectives that pull toward the aligned model and push away from its base (arXiv:2511.07842).

Every one is L = pull − α·push, and **none is bounded below**. On one support, up to a constant,
L = −Σ (p_FT − α·p_PT) log p_Q: wherever p_FT < α·p_PT it pays to send p_Q to zero, so L → −∞. At α ≥ 1
there always is such a token (unless p_FT = p_PT). For α < 1 a finite optimum, where one exists, is
(p_FT − α·p_PT)/(1 − α): an extrapolation past the aligned model, not the aligned model itself. What keeps
training sane is the limited freedom of the transforms; the trainer must watch the pull part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from caq.objectives.base import Logits, Loss, Targets
from caq.objectives.support import kl, restricted_log_probs, top_k

Difference = Literal["probability", "logit"]


def _contrast(pull: Tensor, push: Tensor, alpha: float) -> Loss:
    return Loss(total=pull - alpha * push, parts={"pull": pull.detach(), "push": push.detach()})


def _required(base: Logits | None) -> Logits:
    if base is None:
        raise ValueError("a contrastive objective needs the base model's logits")
    return base


def _restricted_targets(
    aligned: Logits, base: Logits, pull_index: Tensor, push_index: Tensor, *, renormalize: bool
) -> dict[str, Tensor]:
    (pull_log_prob,) = restricted_log_probs(aligned, pull_index, renormalize=renormalize)
    (push_log_prob,) = restricted_log_probs(base, push_index, renormalize=renormalize)
    return {
        "pull_index": pull_index,
        "pull_log_prob": pull_log_prob,
        "push_index": push_index,
        "push_log_prob": push_log_prob,
    }


def _restricted_contrast(student: Logits, targets: Targets, alpha: float, *, renormalize: bool) -> Loss:
    pull_log_prob, push_log_prob = restricted_log_probs(
        student, targets["pull_index"], targets["push_index"], renormalize=renormalize
    )
    pull, push = kl(targets["pull_log_prob"], pull_log_prob), kl(targets["push_log_prob"], push_log_prob)
    return _contrast(pull, push, alpha)


@dataclass(frozen=True)
class ContrastiveKullbackLeibler:
    """KL(p_FT ‖ p_Q) − α·KL(p_PT ‖ p_Q) over the whole vocabulary; unbounded below (see the module)."""

    alpha: float = 0.75
    needs_base: ClassVar[bool] = True
    needs_full: ClassVar[bool] = True

    def targets(self, aligned: Logits, base: Logits | None) -> dict[str, Tensor]:
        """Keep both teachers' logits."""
        return {"aligned": aligned, "base": _required(base)}

    def __call__(self, student: Logits, targets: Targets) -> Loss:
        """Return the pull, the push and their contrast."""
        log_prob = student.float().log_softmax(-1)
        pull, push = (kl(targets[name].float().log_softmax(-1), log_prob) for name in ("aligned", "base"))
        return _contrast(pull, push, self.alpha)


@dataclass(frozen=True)
class ContrastiveTopKullbackLeibler:
    """Pull on the top tokens of p_FT, push on the top tokens of p_PT; unbounded below (see the module)."""

    alpha: float = 0.75
    pull_k: int = 500
    push_k: int = 500
    renormalize: bool = True
    needs_base: ClassVar[bool] = True
    needs_full: ClassVar[bool] = False

    def targets(self, aligned: Logits, base: Logits | None) -> dict[str, Tensor]:
        """Keep the top indices of each teacher and its log-probabilities on them."""
        base = _required(base)
        pull_index, push_index = top_k(aligned, self.pull_k), top_k(base, self.push_k)
        return _restricted_targets(aligned, base, pull_index, push_index, renormalize=self.renormalize)

    def __call__(self, student: Logits, targets: Targets) -> Loss:
        """Return the pull, the push and their contrast."""
        return _restricted_contrast(student, targets, self.alpha, renormalize=self.renormalize)


@dataclass(frozen=True)
class ContrastiveAlignment:
    """CAL: KL(p_FT^S_top ‖ p_Q^S_top) − α·KL(p_PT^S_diff ‖ p_Q^S_diff); unbounded below (see the module).

    S_top holds the `pull_k` largest p_FT, S_diff the `push_k` largest |p_FT − p_PT|, or logit differences
    when `difference` is "logit", as in the authors' code.
    """

    alpha: float = 0.75
    pull_k: int = 500
    push_k: int = 500
    difference: Difference = "probability"
    renormalize: bool = True
    needs_base: ClassVar[bool] = True
    needs_full: ClassVar[bool] = False

    def targets(self, aligned: Logits, base: Logits | None) -> dict[str, Tensor]:
        """Keep S_top with log p_FT on it, and S_diff with log p_PT on it."""
        base = _required(base)
        pull_index = top_k(aligned, self.pull_k)
        push_index = top_k(_difference(aligned, base, self.difference), self.push_k)
        return _restricted_targets(aligned, base, pull_index, push_index, renormalize=self.renormalize)

    def __call__(self, student: Logits, targets: Targets) -> Loss:
        """Return the pull, the push and their contrast."""
        return _restricted_contrast(student, targets, self.alpha, renormalize=self.renormalize)


def _difference(aligned: Logits, base: Logits, kind: Difference) -> Tensor:
    if kind == "logit":
        return (aligned.float() - base.float()).abs_()
    return (aligned.float().softmax(-1) - base.float().softmax(-1)).abs_()
