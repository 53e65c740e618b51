"""CAQ: quantize an aligned language model to 4 bits, keep its alignment, and prove it.

Names are imported when they are first used: torch and transformers take seconds, `import caq` must not.
"""

from __future__ import annotations

from importlib import import_module

# typing's, without the import: an interruption is told from the moment on that `caq.cli` is there, and not before.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from caq.comparison import compare
    from caq.loading import load
    from caq.pipeline import QuantizationResult, quantize
    from caq.recipe import Recipe, preset

__all__ = ["QuantizationResult", "Recipe", "compare", "load", "preset", "quantize"]

_HOMES = {
    "QuantizationResult": "caq.pipeline",
    "Recipe": "caq.recipe",
    "compare": "caq.comparison",
    "load": "caq.loading",
    "preset": "caq.recipe",
    "quantize": "caq.pipeline",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'caq' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
