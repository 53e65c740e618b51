"""Checkpoints in compressed-tensors' format: what Transformers and vLLM load.

Integer weights are packed (`pack-quantized`) whatever the activations are: the library's own default for integer
activations stores four bits in eight. Online Hadamards are recorded as the deterministic kind, by size alone, and
only where they run, so that an engine that applies the recorded transforms cannot fold one twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme
from compressed_tensors.transform import TransformArgs, TransformConfig, TransformScheme
from torch import Tensor

from caq.families import Family, Shape
from caq.numerics.scheme import Numerics
from caq.quantizers.blocks import QuantizedBlock
from caq.recipe import TransformRecipe
from caq.transforms.hadamard import online_block

FORMAT = "pack-quantized"


def block_state(block: QuantizedBlock, family: Family, numerics: Numerics, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return a quantized block's tensors as they are stored, by name inside the block; unquantized ones in `dtype`."""
    compressor = BaseCompressor.get_value_from_registry(FORMAT)
    state = {name: tensor.to(dtype) for name, tensor in block.others.items()}
    for path, quantized in block.linears.items():
        # Codes times float32 scales: dividing by the scale gives the codes back exactly.
        weight = quantized.codes.float() - quantized.zero_point.float().repeat_interleave(
            quantized.codes.shape[1] // quantized.zero_point.shape[1], dim=1
        )
        scale = quantized.scale.float().repeat_interleave(quantized.codes.shape[1] // quantized.scale.shape[1], dim=1)
        whole = {
            "weight": weight * scale,
            "weight_scale": quantized.scale,
            "weight_zero_point": quantized.zero_point,
        }
        packed = compressor.compress(whole, scheme_of(path, family, numerics))
        state |= {f"{path}.{name}": tensor for name, tensor in packed.items()}
    return state


def stored_weights(state: Mapping[str, Tensor], family: Family, numerics: Numerics) -> dict[str, Tensor]:
    """Return what an engine computes with, from a block's stored tensors: weights by tensor name inside the block."""
    compressor = BaseCompressor.get_value_from_registry(FORMAT)
    paths = [name.removesuffix(".weight_packed") for name in state if name.endswith(".weight_packed")]
    weights = {
        name: tensor for name, tensor in state.items() if not name.startswith(tuple(f"{p}.weight" for p in paths))
    }
    for path in paths:
        own = {
            name.removeprefix(f"{path}."): tensor for name, tensor in state.items() if name.startswith(f"{path}.weight")
        }
        weights[f"{path}.weight"] = compressor.decompress(own, scheme_of(path, family, numerics))["weight"]
    return weights


def scheme_of(path: str, family: Family, numerics: Numerics) -> QuantizationScheme:
    """Return the scheme of a linear inside a block."""
    return numerics.output_projection if path == family.attention.output else numerics.linear


def quantization_config(
    family: Family, shape: Shape, numerics: Numerics, transforms: TransformRecipe
) -> dict[str, Any]:
    """Return the `quantization_config` of the checkpoint's configuration."""
    groups = _config_groups(family, numerics)
    config = QuantizationConfig(
        config_groups=groups, format=FORMAT, quantization_status="compressed", ignore=[family.head]
    )
    online = _online_transforms(family, shape, transforms)
    plain: dict[str, Any] = config.model_dump(mode="json")
    return plain | ({"transform_config": online.model_dump(mode="json")} if online else {})


def _config_groups(family: Family, numerics: Numerics) -> dict[str, QuantizationScheme]:
    if numerics.output_projection == numerics.linear:
        return {"group_0": numerics.linear.model_copy(update={"format": FORMAT})}
    attention, mlp = family.attention, family.mlp
    others = [f"re:.*{path.replace('.', '[.]')}$" for path in (*attention.readers, *mlp.readers, mlp.down)]
    output = [f"re:.*{attention.output.replace('.', '[.]')}$"]
    return {
        "group_0": numerics.linear.model_copy(update={"format": FORMAT, "targets": others}),
        "group_1": numerics.output_projection.model_copy(update={"format": FORMAT, "targets": output}),
    }


def _online_transforms(family: Family, shape: Shape, transforms: TransformRecipe) -> TransformConfig | None:
    if not transforms.online_down_hadamard:
        return None
    block = online_block(shape.intermediate)
    down = TransformArgs(targets=[f"re:.*{family.mlp.down.replace('.', '[.]')}$"], location="input")
    scheme = TransformScheme(type="hadamard", apply=[down], head_dim=None if block == shape.intermediate else block)
    return TransformConfig(config_groups={"down_input": scheme})
