"""What an objective is: targets kept per token, and a loss with named parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Float
from torch import Tensor

Logits = Float[Tensor, "tokens vocab"]
Targets = Mapping[str, Tensor]


@dataclass(frozen=True)
class Loss:
    """A loss averaged over token positions.

    Attributes:
        total: the scalar to minimise, float32.
        parts: its unweighted terms for the log, detached float32 scalars: `pull` toward the aligned model
            and, for contrastive objectives, `push` away from the base (total = pull − α·push).
    """

    total: Float[Tensor, ""]
    parts: Mapping[str, Float[Tensor, ""]]


class Objective(Protocol):
    """How far the quantized model is from where it should be."""

    @property
    def needs_base(self) -> bool:
        """Whether `targets` needs the base model's logits."""

    @property
    def needs_full(self) -> bool:
        """Whether the targets are whole rows of logits, and not a few entries of them."""

    def targets(self, aligned: Logits, base: Logits | None) -> dict[str, Tensor]:
        """Return what must be kept of the teachers, one row per token.

        Restricted objectives keep `pull_index`, `pull_log_prob` (and `push_index`, `push_log_prob`), int32
        and float32 of shape [tokens, K]; full ones keep `aligned` (and `base`), logits as they came.
        """

    def __call__(self, student: Logits, targets: Targets) -> Loss:
        """Return the loss of the student's logits (any float dtype) averaged over tokens, in float32."""
