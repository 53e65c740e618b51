"""Function-preserving transforms: one file and one line each. Imports no torch.

They apply in the order of the registry, whatever the order in a recipe: the stream is rotated before a norm is scaled.
"""

from __future__ import annotations

from typing import Any

from caq.transforms.down_hadamard import DownHadamard
from caq.transforms.key_hadamard import KeyHadamard
from caq.transforms.norm_scaling import NormScaling
from caq.transforms.query_key_scaling import QueryKeyScaling
from caq.transforms.residual_rotation import ResidualRotation
from caq.transforms.up_down_scaling import UpDownScaling
from caq.transforms.value_output_rotation import ValueOutputRotation
from caq.transforms.value_output_scaling import ValueOutputScaling

TRANSFORMS: dict[str, type[Any]] = {
    "residual-rotation": ResidualRotation,
    "norm-scaling": NormScaling,
    "value-output-rotation": ValueOutputRotation,
    "value-output-scaling": ValueOutputScaling,
    "query-key-scaling": QueryKeyScaling,
    "up-down-scaling": UpDownScaling,
    "down-hadamard": DownHadamard,
    "key-hadamard": KeyHadamard,
}
