"""What an objective is: targets kept per token, and a loss of what pulls and what pushes. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

from pydantic import Field

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    Logits = Float[Tensor, "tokens vocab"]
    Targets = Mapping[str, Tensor]
else:
    Logits = Targets = object

Alpha = Annotated[float, Field(ge=0)]
#: How α gets from 0 to its value as learning proceeds; `constant` is there from the start.
Schedule = Literal["constant", "linear", "cosine"]
#: Whom the aligned model is told apart from: its base, itself under an unrestricted system prompt, or itself rounded to
#: nearest.
Negative = Literal["base", "prompt", "rtn"]
#: The label of a token that has none: the last of a sequence.
UNLABELLED = -100


@dataclass(frozen=True)
class Teachers:
    """What is known of a run of tokens before learning.

    Attributes:
        aligned: the aligned model's logits.
        negative: the negative's, for contrastive objectives.
        labels: the token that follows each in the calibration text, `UNLABELLED` behind the last of a sequence.
    """

    aligned: Logits
    negative: Logits | None = None
    labels: Int[Tensor, " tokens"] | None = None

    def contrasted(self) -> Logits:
        """Return the negative's logits.

        Raises:
            ValueError: there are none.
        """
        if self.negative is None:
            raise ValueError("a contrastive objective needs a negative's logits")
        return self.negative


@dataclass(frozen=True)
class Loss:
    """A loss of every token, in float32; pull and push unweighted and detached.

    Attributes:
        total: what is minimised.
        pull: the distance from the aligned model, or from the calibration text.
        push: the distance from the negative, for contrastive objectives that measure one.
    """

    total: Float[Tensor, " tokens"]
    pull: Float[Tensor, " tokens"]
    push: Float[Tensor, " tokens"] | None = None

    def mean(self, weights: Float[Tensor, " tokens"] | None = None) -> dict[str, Float[Tensor, ""]]:
        """Return total, pull and push by name, averaged over the tokens; no push where there is none.

        Args:
            weights: how much each token counts, on average 1 over all tokens that are learned from, though not over
                these: the mean of the weighted values is taken. None counts all alike.
        """
        named = {"total": self.total, "pull": self.pull, "push": self.push}
        values = {name: value for name, value in named.items() if value is not None}
        return {name: (value if weights is None else weights * value).mean() for name, value in values.items()}


def pulled(pull: Tensor) -> Loss:
    """Return the loss that is the pull alone."""
    return Loss(pull, pull.detach())


def contrast(pull: Tensor, push: Tensor, alpha: float) -> Loss:
    """Return pull − α·push, toward the aligned model and away from its negative (arXiv:2511.07842).

    It is **not bounded below**. On one support, up to a constant, L = −Σ (p_aligned − α·p_neg) log p_Q: wherever
    p_aligned < α·p_neg it pays to send p_Q to zero, so L → −∞. At α ≥ 1 there always is such a token (unless the two
    are equal). For α < 1 a finite optimum, where one exists, is (p_aligned − α·p_neg)/(1 − α): an extrapolation past
    the aligned model, not the aligned model itself. What keeps learning sane is the limited freedom of the transforms;
    a learner must watch the pull. `hinge`, `sigmoid-gap`, `jensen-shannon` and `positive-part` are bounded.
    """
    return Loss(pull - alpha * push, pull.detach(), push.detach())


def scheduled(alpha: float, schedule: Schedule, progress: float) -> float:
    """Return α at a progress from 0 to 1; its last value is α whatever the schedule."""
    if schedule == "linear":
        return alpha * progress
    if schedule == "cosine":
        return alpha * (1 - math.cos(math.pi * progress)) / 2
    return alpha


class Objective(Protocol):
    """How far the quantized model is from where it should be; its fields are the options of its entry in a recipe."""

    @property
    def name(self) -> str:
        """Its name in recipes."""

    @property
    def needs_negative(self) -> bool:
        """Whether `targets` needs a negative's logits."""

    @property
    def negative(self) -> Negative | None:
        """The negative it was told to take; None takes the base where there is one. Read only where it needs one."""

    @property
    def needs_full(self) -> bool:
        """Whether the targets are whole rows of logits, and not a few entries of them."""

    @property
    def targets_options(self) -> tuple[str, ...]:
        """The options that decide the targets: objectives equal in them share what is kept of the teachers."""

    def targets(self, teachers: Teachers) -> dict[str, Tensor]:
        """Return what must be kept of the teachers, one row per token.

        Restricted objectives keep indices (int32) and log-probabilities (float32) of shape [tokens, K]; full ones
        keep `aligned` (and `negative`), logits as they came.
        """

    def __call__(self, student: Logits, targets: Targets, progress: float) -> Loss:
        """Return the loss of the student's logits (any float dtype), token by token, in float32.

        Args:
            student: its logits.
            targets: from `targets`, of the same tokens.
            progress: how much of the learning is done, from 0 to 1, for weights that change as it proceeds.
        """
