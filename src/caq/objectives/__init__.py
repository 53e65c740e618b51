"""What the transforms are learned under: one file and one line each. Imports no torch."""

from __future__ import annotations

from typing import Any

from caq.objectives.base import Logits, Loss, Objective, Targets
from caq.objectives.contrastive_kl import ContrastiveKullbackLeibler
from caq.objectives.contrastive_top import ContrastiveAlignment, ContrastiveTopKullbackLeibler
from caq.objectives.kl import KullbackLeibler
from caq.objectives.kl_top import TopKullbackLeibler
from caq.objectives.mse import MeanSquaredError

__all__ = ["OBJECTIVES", "Logits", "Loss", "Objective", "Targets"]

OBJECTIVES: dict[str, type[Any]] = {
    "mse": MeanSquaredError,
    "kl": KullbackLeibler,
    "kl-top": TopKullbackLeibler,
    "contrastive-kl": ContrastiveKullbackLeibler,
    "contrastive-kl-top": ContrastiveTopKullbackLeibler,
    "cal": ContrastiveAlignment,
}
