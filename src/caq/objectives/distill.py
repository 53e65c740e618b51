"""Objectives that only pull toward the aligned model: `mse`, `kl` and `kl-top`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from caq.objectives.base import Logits, Loss, Targets
from caq.objectives.support import kl, restricted_log_probs, top_k


def _pull(value: Tensor) -> Loss:
    return Loss(total=value, parts={"pull": value.detach()})


@dataclass(frozen=True)
class MeanSquaredError:
    """Mean squared difference of the logits, over tokens and vocabulary."""

    needs_base: ClassVar[bool] = False
    needs_full: ClassVar[bool] = True

    def targets(self, aligned: Logits, base: Logits | None) -> dict[str, Tensor]:
        """Keep the aligned model's logits."""
        return {"aligned": aligned}

    def __call__(self, student: Logits, targets: Targets) -> Loss:
        """Return mean (student − aligned)²."""
        return _pull((student.float() - targets["aligned"].float()).square().mean())


@dataclass(frozen=True)
class KullbackLeibler:
    """KL(p_FT ‖ p_Q) over the whole vocabulary."""

    needs_base: ClassVar[bool] = False
    needs_full: ClassVar[bool] = True

    def targets(self, aligned: Logits, base: Logits | None) -> dict[str, Tensor]:
        """Keep the aligned model's logits."""
        return {"aligned": aligned}

    def __call__(self, student: Logits, targets: Targets) -> Loss:
        """Return KL(p_FT ‖ p_Q)."""
        aligned = targets["aligned"].float().log_softmax(-1)
        return _pull(kl(aligned, student.float().log_softmax(-1)))


@dataclass(frozen=True)
class TopKullbackLeibler:
    """KL(p_FT ‖ p_Q) on S_top, the `pull_k` likeliest tokens of the aligned model."""

    pull_k: int = 500
    renormalize: bool = True
    needs_base: ClassVar[bool] = False
    needs_full: ClassVar[bool] = False

    def targets(self, aligned: Logits, base: Logits | None) -> dict[str, Tensor]:
        """Keep S_top and log p_FT on it."""
        index = top_k(aligned, self.pull_k)
        (log_prob,) = restricted_log_probs(aligned, index, renormalize=self.renormalize)
        return {"pull_index": index, "pull_log_prob": log_prob}

    def __call__(self, student: Logits, targets: Targets) -> Loss:
        """Return KL(p_FT^S_top ‖ p_Q^S_top)."""
        (log_prob,) = restricted_log_probs(student, targets["pull_index"], renormalize=self.renormalize)
        return _pull(kl(targets["pull_log_prob"], log_prob))
