"""What an objective is: targets kept per token, and a loss of what pulls and what pushes. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Protocol

from pydantic import Field

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    Logits = Float[Tensor, "tokens vocab"]
    Targets = Mapping[str, Tensor]
else:
    Logits = Targets = object

Alpha = Annotated[float, Field(ge=0)]


@dataclass(frozen=True)
class Loss:
    """A loss averaged over token positions; scalars in float32, the terms unweighted and detached.

    Attributes:
        total: what is minimised.
        pull: the distance from the aligned model.
        push: the distance from the negative, for contrastive objectives (total = pull − α·push).
    """

    total: Float[Tensor, ""]
    pull: Float[Tensor, ""]
    push: Float[Tensor, ""] | None = None

    def terms(self) -> dict[str, Float[Tensor, ""]]:
        """Return total, pull and push by name, detached; no push where there is none."""
        named = {"total": self.total, "pull": self.pull, "push": self.push}
        return {name: value.detach() for name, value in named.items() if value is not None}


def pulled(pull: Tensor) -> Loss:
    """Return the loss that is the pull alone."""
    return Loss(pull, pull.detach())


def contrast(pull: Tensor, push: Tensor, alpha: float) -> Loss:
    """Return pull − α·push, toward the aligned model and away from its base (arXiv:2511.07842).

    It is **not bounded below**. On one support, up to a constant, L = −Σ (p_aligned − α·p_base) log p_Q: wherever
    p_aligned < α·p_base it pays to send p_Q to zero, so L → −∞. At α ≥ 1 there always is such a token (unless the two
    are equal). For α < 1 a finite optimum, where one exists, is (p_aligned − α·p_base)/(1 − α): an extrapolation past
    the aligned model, not the aligned model itself. What keeps learning sane is the limited freedom of the transforms;
    a learner must watch the pull.
    """
    return Loss(pull - alpha * push, pull.detach(), push.detach())


def required(negative: Logits | None) -> Logits:
    """Return the negative.

    Raises:
        ValueError: there is none.
    """
    if negative is None:
        raise ValueError("a contrastive objective needs the base model's logits")
    return negative


class Objective(Protocol):
    """How far the quantized model is from where it should be; its fields are the options of its entry in a recipe."""

    @property
    def name(self) -> str:
        """Its name in recipes."""

    @property
    def needs_base(self) -> bool:
        """Whether `targets` needs a negative: the base model's logits."""

    @property
    def needs_full(self) -> bool:
        """Whether the targets are whole rows of logits, and not a few entries of them."""

    @property
    def targets_options(self) -> tuple[str, ...]:
        """The options that decide the targets: objectives equal in them share what is kept of the teachers."""

    def targets(self, aligned: Logits, negative: Logits | None) -> dict[str, Tensor]:
        """Return what must be kept of the teachers, one row per token.

        Restricted objectives keep `pull_index`, `pull_log_prob` (and `push_index`, `push_log_prob`), int32
        and float32 of shape [tokens, K]; full ones keep `aligned` (and `negative`), logits as they came.
        """

    def __call__(self, student: Logits, targets: Targets, progress: float) -> Loss:
        """Return the loss of the student's logits (any float dtype) averaged over tokens, in float32.

        Args:
            student: its logits.
            targets: from `targets`, of the same tokens.
            progress: how much of the learning is done, from 0 to 1, for weights that change as it proceeds.
        """
