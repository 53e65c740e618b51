"""The registry of model families: one spec, one line."""

from __future__ import annotations

from difflib import get_close_matches

from caq.errors import Unsupported
from caq.families.bind import Bound, OwnWeights, Weights, bind
from caq.families.llama import LLAMA, MISTRAL, QWEN2, QWEN3
from caq.families.spec import Address, Branch, Family, Norm, Pair, Shape, shape_of

FAMILIES: dict[str, Family] = {
    model_type: family for family in (LLAMA, MISTRAL, QWEN2, QWEN3) for model_type in family.model_types
}

__all__ = ["FAMILIES", "Address", "Bound", "Branch", "Family", "Norm", "OwnWeights", "Pair", "Shape", "Weights"]
__all__ += ["bind", "find_family", "shape_of"]


def find_family(model_type: str) -> Family:
    """Return the family of `config.model_type`.

    Raises:
        Unsupported: no spec describes it; the message names the nearest one.
    """
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    nearest = (get_close_matches(model_type, FAMILIES, n=1, cutoff=0.0) or ["llama"])[0]
    raise Unsupported(
        f"model type {model_type!r} has no family spec; supported: {', '.join(sorted(FAMILIES))}. The nearest is "
        f"{FAMILIES[nearest].name} ({nearest}): if the layout is the same, add a spec and a line in src/caq/families/."
    )
