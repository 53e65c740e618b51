"""Quantizers: how weights are rounded. Importing this imports no torch, so that recipes can read the options."""

from __future__ import annotations

from caq.quantizers.base import InputStatistics, Quantized, Quantizer
from caq.quantizers.gptaq import Gptaq
from caq.quantizers.gptq import Gptq
from caq.quantizers.rtn import RoundToNearest

__all__ = ["QUANTIZERS", "Gptaq", "Gptq", "InputStatistics", "Quantized", "Quantizer", "RoundToNearest"]

#: By the name that a recipe gives: frozen `caq.options.Options` that are a `Quantizer`.
QUANTIZERS: dict[str, type[Quantizer]] = {"rtn": RoundToNearest, "gptq": Gptq, "gptaq": Gptaq}
