"""What is stored is what compressed-tensors itself reads: packed weights, the configuration, the online Hadamard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from caq.transforms.hadamard import WalshHadamard
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, apply_quantization_config
from compressed_tensors.transform import TransformConfig, apply_transform_config
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from caq.export.compressed import block_state, quantization_config, scheme_of, stored_weights
from caq.families import Bound, bind, find
from caq.families.bind import shape_of
from caq.numerics.scheme import Numerics, resolve
from caq.quantizers.blocks import QuantizedBlock
from caq.quantizers.rtn import RoundToNearest
from caq.recipe import SchemeRecipe, TransformRecipe
from caq.transforms.online import hadamard_sites, install
from tests.support.tiny import tiny_model

# Groups of 128 divide these.
WIDE = dict(hidden_size=128, intermediate_size=256, num_attention_heads=4, num_key_value_heads=2, head_dim=32)
PREFIX = "model.layers.1."
SCHEMES = {
    "W4A4": SchemeRecipe(),
    "W4A4 grouped o": SchemeRecipe(output_projection_groups=True, value_bits=4),
    "W4A4_G128": SchemeRecipe(preset="W4A4_G128"),
    "W4A16": SchemeRecipe(preset="W4A16"),
    "W8A8": SchemeRecipe(preset="W8A8"),
    "W3A16": SchemeRecipe(preset="W3A16"),
}
EVERY_SCHEME = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES.keys())


def wide(family: str = "llama") -> Bound:
    model = tiny_model(family, dtype=torch.float32, **WIDE)
    return bind(find(model.config.model_type), model)


def rounded(bound: Bound, numerics: Numerics, dtype: torch.dtype) -> QuantizedBlock:
    """Return the second block, every linear rounded to nearest, scales in `dtype`."""
    quantizer, block = RoundToNearest(dtype, None), bound.blocks[1]
    linears = {
        path: quantizer.quantize(block.get_parameter(f"{path}.weight"), None, numerics.linear.weights)
        for path in bound.linears
    }
    others = {
        name: tensor.double()
        for name, tensor in block.named_parameters()
        if name.removesuffix(".weight") not in linears
    }
    return QuantizedBlock(linears, others)


def written(bound: Bound, numerics: Numerics, transforms: TransformRecipe | None = None) -> dict[str, Any]:
    """Return the configuration as it comes back from config.json."""
    config = quantization_config(bound.family, bound.shape, numerics, transforms or TransformRecipe())
    back: dict[str, Any] = json.loads(json.dumps(config))
    return back


def decompressed(state: Mapping[str, Tensor], config: dict[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the block's tensors as compressed-tensors reads them: the way Transformers loads a checkpoint."""
    model = tiny_model("llama-biases", dtype=dtype, **WIDE)
    parsed = QuantizationConfig.model_validate(config)
    apply_quantization_config(model, parsed)
    compressor = ModelCompressor(quantization_config=parsed)
    compressor.compress_model(model)
    loaded = model.load_state_dict({PREFIX + name: tensor for name, tensor in state.items()}, strict=False)
    assert loaded.unexpected_keys == []
    assert not [name for name in loaded.missing_keys if name.startswith(PREFIX)]
    compressor.decompress_model(model)
    return dict(model.get_submodule(PREFIX.rstrip(".")).named_parameters())


@EVERY_SCHEME
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_stored_weights_are_what_compressed_tensors_decompresses_and_what_was_quantized(
    scheme: SchemeRecipe, dtype: torch.dtype, tmp_path: Path
) -> None:
    bound = wide("llama-biases")
    numerics = resolve(scheme, bound.shape.head_dim)
    block = rounded(bound, numerics, dtype)
    state = block_state(block, bound.family, numerics, dtype)
    save_file(state, tmp_path / "block.safetensors")
    state = load_file(tmp_path / "block.safetensors")

    found = stored_weights(state, bound.family, numerics)
    theirs = decompressed(state, written(bound, numerics), dtype)
    quantized = {path: one.weight() for path, one in block.linears.items()}
    assert set(found) == {*block.others, *(f"{path}.weight" for path in bound.linears)}
    for name, tensor in found.items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, theirs[name]), name
        if name in block.others:
            assert torch.equal(tensor, block.others[name].to(dtype))
        else:
            assert torch.equal(tensor, quantized[name.removesuffix(".weight")])


@pytest.mark.parametrize(("scheme", "bits"), [(SCHEMES["W4A4"], 4), (SCHEMES["W8A8"], 8), (SCHEMES["W3A16"], 3)])
def test_weights_are_stored_in_as_many_bits_as_they_have(scheme: SchemeRecipe, bits: int) -> None:
    bound = wide()
    numerics = resolve(scheme, bound.shape.head_dim)
    state = block_state(rounded(bound, numerics, torch.bfloat16), bound.family, numerics, torch.bfloat16)
    for path in bound.linears:
        packed, weight = state[f"{path}.weight_packed"], bound.blocks[1].get_parameter(f"{path}.weight")
        assert packed.numel() * 32 == weight.numel() * bits
        assert tuple(state[f"{path}.weight_shape"].tolist()) == tuple(weight.shape)
        assert f"{path}.weight" not in state
        # vLLM reads no zero points of symmetric weights.
        assert f"{path}.weight_zero_point" not in state


@EVERY_SCHEME
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_configuration_is_one_that_compressed_tensors_reads_back_as_it_was(
    scheme: SchemeRecipe, family: str
) -> None:
    bound = wide(family)
    numerics = resolve(scheme, bound.shape.head_dim)
    parsed = QuantizationConfig.model_validate(written(bound, numerics))
    assert parsed.format == "pack-quantized"
    assert parsed.quantization_status == "compressed"
    assert parsed.ignore == ["lm_head"]
    apply_quantization_config(bound.model, parsed)
    schemes = {
        name: module.quantization_scheme
        for name, module in bound.model.named_modules()
        if getattr(module, "quantization_scheme", None) is not None
    }
    assert set(schemes) == {f"model.layers.{index}.{path}" for index in range(2) for path in bound.linears}
    for name, found in schemes.items():
        expected = scheme_of(name.split(".", 3)[3], bound.family, numerics)
        assert (found.weights, found.input_activations) == (expected.weights, expected.input_activations)


def test_only_the_output_projection_is_in_groups_of_head_dim() -> None:
    bound = wide()
    numerics = resolve(SCHEMES["W4A4 grouped o"], bound.shape.head_dim)
    inputs = {path: scheme_of(path, bound.family, numerics).input_activations for path in bound.linears}
    grouped = QuantizationArgs(num_bits=4, strategy="group", group_size=32, symmetric=False, dynamic=True)
    assert inputs.pop("self_attn.o_proj") == grouped
    assert {args.strategy for args in inputs.values()} == {"token"}


def online(model: PreTrainedModel) -> TransformConfig:
    family, shape = find(model.config.model_type), shape_of(model.config)
    numerics = resolve(SchemeRecipe(), shape.head_dim)
    config = json.loads(json.dumps(quantization_config(family, shape, numerics, TransformRecipe())))
    return TransformConfig.model_validate(config["transform_config"])


@pytest.mark.parametrize(("size", "block"), [(64, 64), (56, 8), (96, 32), (2, 2), (7, 1)])
def test_the_recorded_hadamard_is_the_one_that_runs(size: int, block: int) -> None:
    model = tiny_model("llama", intermediate_size=size)
    inputs = torch.randn(3, 5, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    down = model.get_submodule("model.layers.0.mlp.down_proj")
    down.weight = nn.Parameter(torch.eye(size, dtype=torch.float64), requires_grad=False)
    apply_transform_config(model, online(model))
    # compressed-tensors transforms in float32.
    torch.testing.assert_close(down(inputs), WalshHadamard(block).apply(inputs), rtol=0, atol=5e-6)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_compressed_tensors_transforms_make_the_model_that_our_hooks_make(family: str) -> None:
    ids = torch.arange(24).reshape(2, 12)
    plain, theirs, ours = (tiny_model(family) for _ in range(3))
    apply_transform_config(theirs, online(theirs))
    shape = shape_of(ours.config)
    for block in ours.model.layers:
        install(block, hadamard_sites(find(ours.config.model_type), shape, TransformRecipe()))
    torch.testing.assert_close(theirs(ids).logits, ours(ids).logits, rtol=0, atol=1e-5)
    assert not torch.allclose(plain(ids).logits, ours(ids).logits, atol=1e-2)


def test_without_the_online_hadamard_no_transform_is_recorded() -> None:
    bound = wide()
    numerics = resolve(SchemeRecipe(), bound.shape.head_dim)
    assert "transform_config" in written(bound, numerics)
    assert "transform_config" not in written(bound, numerics, TransformRecipe(online_down_hadamard=False))
