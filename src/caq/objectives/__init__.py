"""The six objectives of arXiv:2511.07842's tables, by name."""

from __future__ import annotations

from dataclasses import fields
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, Protocol

from caq.errors import InvalidInput
from caq.objectives.base import Logits, Loss, Objective, Targets
from caq.objectives.contrastive import (
    ContrastiveAlignment,
    ContrastiveKullbackLeibler,
    ContrastiveTopKullbackLeibler,
)
from caq.objectives.distill import KullbackLeibler, MeanSquaredError, TopKullbackLeibler

__all__ = ["ALIASES", "OBJECTIVES", "Logits", "Loss", "Objective", "Targets", "make_objective"]

OBJECTIVES: MappingProxyType[str, Any] = MappingProxyType(
    {
        "mse": MeanSquaredError,
        "kl": KullbackLeibler,
        "kl-top": TopKullbackLeibler,
        "contrastive-kl": ContrastiveKullbackLeibler,
        "contrastive-kl-top": ContrastiveTopKullbackLeibler,
        "cal": ContrastiveAlignment,
    }
)
ALIASES: MappingProxyType[str, str] = MappingProxyType({"apc": "cal"})


class ObjectiveRecipe(Protocol):
    """The recipe's fields that name an objective and set its options."""

    @property
    def name(self) -> str:
        """A key of `OBJECTIVES` or `ALIASES`; options are attributes named as the objective's fields."""


def make_objective(recipe: ObjectiveRecipe) -> Objective:
    """Return the objective a recipe names, with those of the recipe's options that it has.

    Raises:
        InvalidInput: the name is unknown.
    """
    name = ALIASES.get(recipe.name, recipe.name)
    if name not in OBJECTIVES:
        near = get_close_matches(name, [*OBJECTIVES, *ALIASES], n=3, cutoff=0.0)
        raise InvalidInput([f"objective {recipe.name!r} is unknown; the nearest are {', '.join(near)}"])
    kind = OBJECTIVES[name]
    objective: Objective = kind(**{option.name: getattr(recipe, option.name) for option in fields(kind)})
    return objective
