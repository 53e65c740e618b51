"""What the transforms are learned under, one line each. Imports no torch."""

from __future__ import annotations

from typing import Any

from caq.objectives.base import UNLABELLED, Logits, Loss, Negative, Objective, Targets, Teachers
from caq.objectives.bounded import JensenShannon, PositivePart
from caq.objectives.full import ContrastiveKullbackLeibler, KullbackLeibler, MeanSquaredError
from caq.objectives.gap import Hinge, SigmoidGap
from caq.objectives.next_token import CrossEntropy
from caq.objectives.restricted import ContrastiveAlignment, ContrastiveTopKullbackLeibler, TopKullbackLeibler

__all__ = ["OBJECTIVES", "UNLABELLED", "Logits", "Loss", "Negative", "Objective", "Targets", "Teachers"]

OBJECTIVES: dict[str, type[Any]] = {
    "mse": MeanSquaredError,
    "kl": KullbackLeibler,
    "kl-top": TopKullbackLeibler,
    "cross-entropy": CrossEntropy,
    "contrastive-kl": ContrastiveKullbackLeibler,
    "contrastive-kl-top": ContrastiveTopKullbackLeibler,
    "cal": ContrastiveAlignment,
    "hinge": Hinge,
    "sigmoid-gap": SigmoidGap,
    "jensen-shannon": JensenShannon,
    "positive-part": PositivePart,
}
