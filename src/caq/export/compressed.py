"""Checkpoints in compressed-tensors' format: what Transformers and vLLM load.

Integer weights are packed (`pack-quantized`) whatever the activations are: the library's own default for integer
activations stores four bits in eight. Online Hadamards on linears are recorded as the deterministic kind, by size
alone, and only where they run, so that an engine that applies the recorded transforms cannot fold one twice; all else
that runs online is for `caq.load`, from `online.json`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from caq.transforms.location import ATTENTION, ONLINE, Location

if TYPE_CHECKING:
    import torch
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.transform import TransformScheme
    from torch import Tensor

    from caq.families import Bound
    from caq.numerics.scheme import Numerics
    from caq.quantizers.base import Quantized
    from caq.quantizers.blocks import QuantizedBlock
    from caq.transforms.online import Step

LAYOUT = "pack-quantized"
_PACKED = ".weight_packed"


class CompressedTensors:
    """Integers of up to 8 bits, packed into 32."""

    runs_online: ClassVar[frozenset[Location]] = ONLINE

    def holds(self, args: QuantizationArgs) -> bool:
        """Return whether the numbers are integers."""
        return bool(args.type == "int")

    def store(self, block: QuantizedBlock, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return packed weights, their scales, shapes and zero points, and every other tensor in `dtype`."""
        stored = {name: tensor.to(dtype) for name, tensor in block.others.items()}
        for path, quantized in block.linears.items():
            stored |= {f"{path}.{name}": tensor for name, tensor in _packed(quantized).items()}
        return stored

    def read(self, stored: Mapping[str, Tensor], args: QuantizationArgs) -> QuantizedBlock:
        """Return the block with its weights unpacked."""
        from caq.quantizers.base import Quantized
        from caq.quantizers.blocks import QuantizedBlock

        paths = [name.removesuffix(_PACKED) for name in stored if name.endswith(_PACKED)]
        others = {
            name: tensor for name, tensor in stored.items() if not name.startswith(tuple(f"{p}.weight" for p in paths))
        }
        return QuantizedBlock({path: Quantized(*_unpacked(stored, path, args), args) for path in paths}, others)

    def configuration(self, bound: Bound, numerics: Numerics, steps: Sequence[Step]) -> dict[str, Any]:
        """Return `quantization_config`, with `transform_config` in it where Hadamards run online."""
        from compressed_tensors.quantization import QuantizationConfig
        from compressed_tensors.transform import TransformConfig

        config = QuantizationConfig(
            config_groups=_groups(bound, numerics),
            format=LAYOUT,
            quantization_status="compressed",
            ignore=[bound.family.head, *_unquantized(bound)],
        )
        plain: dict[str, Any] = config.model_dump(mode="json")
        hadamards = _hadamards(bound, steps)
        if hadamards:
            plain["transform_config"] = TransformConfig(config_groups=hadamards).model_dump(mode="json")
        return {"quantization_config": plain}


def _packed(quantized: Quantized) -> dict[str, Tensor]:
    import torch
    from compressed_tensors.compressors.pack_quantized import pack_to_int32

    bits = quantized.args.num_bits
    packed = {
        "weight_packed": pack_to_int32(quantized.codes, bits),
        "weight_scale": quantized.parameters["scale"],
        "weight_shape": torch.tensor(quantized.codes.shape),
    }
    if "zero_point" in quantized.parameters:
        packed["weight_zero_point"] = pack_to_int32(quantized.parameters["zero_point"], bits, packed_dim=0)
    return {name: tensor.contiguous() for name, tensor in packed.items()}


def _unpacked(stored: Mapping[str, Tensor], path: str, args: QuantizationArgs) -> tuple[Tensor, dict[str, Tensor]]:
    import torch
    from compressed_tensors.compressors.pack_quantized import unpack_from_int32

    shape = torch.Size(stored[f"{path}.weight_shape"].tolist())
    codes: Tensor = unpack_from_int32(stored[f"{path}{_PACKED}"], args.num_bits, shape)
    parameters = {"scale": stored[f"{path}.weight_scale"]}
    zero_point = stored.get(f"{path}.weight_zero_point")
    if zero_point is not None:
        groups = parameters["scale"].shape
        parameters["zero_point"] = unpack_from_int32(zero_point, args.num_bits, groups, packed_dim=0)
    return codes, parameters


def _groups(bound: Bound, numerics: Numerics) -> dict[str, QuantizationScheme]:
    linear, output = (
        scheme.model_copy(update={"format": LAYOUT}) for scheme in (numerics.linear, numerics.output_projection)
    )
    if linear == output:
        return {"group_0": linear}
    branches = [branch for _, branch in bound.all_branches()]
    outputs = {branch.writes.path for branch in branches if branch.kind == "attention"}
    paths = {address.path for branch in branches for address in (*branch.reads, branch.writes) if address.quantized}
    return {
        "group_0": linear.model_copy(update={"targets": _patterns(paths - outputs)}),
        "group_1": output.model_copy(update={"targets": _patterns(outputs)}),
    }


def _unquantized(bound: Bound) -> list[str]:
    reads = (address for _, branch in bound.all_branches() for address in branch.reads)
    return _patterns({address.path for address in reads if not address.quantized})


def _hadamards(bound: Bound, steps: Iterable[Step]) -> dict[str, TransformScheme]:
    """Return the Hadamards on linears; those inside an attention cannot be recorded for an engine to run."""
    from compressed_tensors.transform import TransformArgs, TransformScheme

    from caq.transforms.maps.hadamard import WalshHadamard

    schemes = {}
    for step in steps:
        if isinstance(step.act, WalshHadamard) and step.location not in ATTENTION:
            features = bound.blocks[0].get_submodule(step.path).get_parameter("weight").shape[-1]
            place = TransformArgs(targets=_patterns({step.path}), location=step.location.value)
            size = None if step.act.block == features else step.act.block
            name = f"{step.path.rpartition('.')[2].removesuffix('_proj')}_{step.location.value}"
            schemes[name] = TransformScheme(type="hadamard", apply=[place], head_dim=size)
    return schemes


def _patterns(paths: Iterable[str]) -> list[str]:
    return [f"re:.*{path.replace('.', '[.]')}$" for path in sorted(paths)]
