"""Recipes: everything that decides a run, validated at once, read from YAML, hashable. Imports no torch."""

from caq.numerics.options import SchemeRecipe
from caq.recipe.overrides import parse_override
from caq.recipe.recipe import PRESETS, Recipe, preset
from caq.recipe.sections import SELF, DataRecipe

__all__ = ["PRESETS", "SELF", "DataRecipe", "Recipe", "SchemeRecipe", "parse_override", "preset"]
