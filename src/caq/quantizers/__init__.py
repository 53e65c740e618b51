"""The registry of quantizers."""

from __future__ import annotations

from typing import Any, Literal

from caq.options import Options, Positive, PositiveFloat


class Rtn(Options):
    name: Literal["rtn"] = "rtn"
    clip_search: bool = True
    clip_norm: PositiveFloat = 2.4
    clip_steps: Positive = 80
    quantized_statistics: bool = True
    samples: Positive | None = None


class Gptq(Options):
    name: Literal["gptq"] = "gptq"
    block_size: Positive = 128
    damping: PositiveFloat = 0.01
    max_damping: PositiveFloat = 1.0
    clip_search: bool = True
    clip_norm: PositiveFloat = 2.4
    clip_steps: Positive = 80
    quantized_statistics: bool = True
    samples: Positive | None = None


QUANTIZERS: dict[str, type[Any]] = {"rtn": Rtn, "gptq": Gptq}
