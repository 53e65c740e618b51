"""What safetensors' names of types are in torch."""

from __future__ import annotations

import torch

#: In which full-precision models are stored.
FULL = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
#: Whose values can be NaN or infinite.
FLOATING = {**FULL, "F8_E5M2": torch.float8_e5m2, "F8_E4M3": torch.float8_e4m3fn}
#: All that torch has.
DTYPES = {
    **FLOATING,
    "BOOL": torch.bool,
    **{f"I{bits}": getattr(torch, f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": getattr(torch, f"uint{bits}") for bits in (8, 16, 32, 64)},
}
