"""Recipes: everything that decides a run, validated at once, read from YAML, hashable. Imports no torch."""

from caq.recipe.recipe import PRESETS, Recipe, parse_override, preset
from caq.recipe.sections import (
    SCHEMES,
    DataRecipe,
    ObjectiveRecipe,
    QuantizerRecipe,
    SchemeRecipe,
    TrainingRecipe,
    TransformRecipe,
)

__all__ = [
    "PRESETS",
    "SCHEMES",
    "DataRecipe",
    "ObjectiveRecipe",
    "QuantizerRecipe",
    "Recipe",
    "SchemeRecipe",
    "TrainingRecipe",
    "TransformRecipe",
    "parse_override",
    "preset",
]
