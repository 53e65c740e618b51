"""`kl-top`: the divergence on the aligned model's likeliest tokens (OSTQuant's KL-Top, arXiv:2501.13987)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from caq.objectives.base import Logits, Loss, Targets
from caq.options import Options, Positive

if TYPE_CHECKING:
    from torch import Tensor


class TopKullbackLeibler(Options):
    """KL(p_aligned ‖ p_Q) on S_top, the `pull_k` likeliest tokens of the aligned model.

    Attributes:
        pull_k: size of S_top.
        renormalize: softmax restricted to S_top; otherwise full softmax, then gather.
    """

    name: Literal["kl-top"] = "kl-top"
    pull_k: Positive = 500
    renormalize: bool = True
    needs_base: ClassVar[bool] = False
    needs_full: ClassVar[bool] = False
    targets_options: ClassVar[tuple[str, ...]] = ("pull_k", "renormalize")

    def targets(self, aligned: Logits, negative: Logits | None) -> dict[str, Tensor]:
        """Keep S_top and log p_aligned on it."""
        from caq.objectives.support import restricted_log_probs, top_k

        index = top_k(aligned, self.pull_k)
        (log_prob,) = restricted_log_probs(aligned, index, renormalize=self.renormalize)
        return {"pull_index": index, "pull_log_prob": log_prob}

    def __call__(self, student: Logits, targets: Targets, progress: float) -> Loss:
        """Return the divergence on S_top."""
        from caq.objectives.support import kl, restricted_log_probs

        (log_prob,) = restricted_log_probs(student, targets["pull_index"], renormalize=self.renormalize)
        pull = kl(targets["pull_log_prob"], log_prob)
        return Loss(pull, pull.detach())
