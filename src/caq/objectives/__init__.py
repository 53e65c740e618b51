"""What the transforms are learned under, one line each. Imports no torch."""

from __future__ import annotations

from typing import Any

from caq.objectives.base import Logits, Loss, Objective, Targets
from caq.objectives.full import ContrastiveKullbackLeibler, KullbackLeibler, MeanSquaredError
from caq.objectives.restricted import ContrastiveAlignment, ContrastiveTopKullbackLeibler, TopKullbackLeibler

__all__ = ["OBJECTIVES", "Logits", "Loss", "Objective", "Targets"]

OBJECTIVES: dict[str, type[Any]] = {
    "mse": MeanSquaredError,
    "kl": KullbackLeibler,
    "kl-top": TopKullbackLeibler,
    "contrastive-kl": ContrastiveKullbackLeibler,
    "contrastive-kl-top": ContrastiveTopKullbackLeibler,
    "cal": ContrastiveAlignment,
}
