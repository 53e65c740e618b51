"""The registry of quantizers."""

from __future__ import annotations

import torch

from caq.quantizers.base import Quantized, Quantizer
from caq.quantizers.clip import ClipSearch
from caq.quantizers.gptq import Gptq
from caq.quantizers.rtn import RoundToNearest
from caq.recipe import QuantizerRecipe

__all__ = ["QUANTIZERS", "Quantized", "Quantizer", "make_quantizer"]


def _rtn(recipe: QuantizerRecipe, scale_dtype: torch.dtype, clip: ClipSearch | None) -> Quantizer:
    return RoundToNearest(scale_dtype, clip)


def _gptq(recipe: QuantizerRecipe, scale_dtype: torch.dtype, clip: ClipSearch | None) -> Quantizer:
    return Gptq(scale_dtype, clip, recipe.block_size, recipe.damping, recipe.max_damping)


QUANTIZERS = {"rtn": _rtn, "gptq": _gptq}


def make_quantizer(recipe: QuantizerRecipe, scale_dtype: torch.dtype) -> Quantizer:
    """Return the quantizer that `recipe` names; scales are stored in `scale_dtype`."""
    clip = ClipSearch(recipe.clip_norm, recipe.clip_steps) if recipe.clip_search else None
    return QUANTIZERS[recipe.name](recipe, scale_dtype, clip)
