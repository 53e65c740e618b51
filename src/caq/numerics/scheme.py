"""What a scheme's name means: compressed-tensors' presets, plus the paper's W4A4 and a quantized KV cache."""

from __future__ import annotations

from dataclasses import dataclass

from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme, preset_name_to_scheme
from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES

from caq.errors import Unsupported
from caq.numerics.grids import GRIDS
from caq.numerics.options import SchemeRecipe


@dataclass(frozen=True)
class Numerics:
    """Every number format of one run.

    Attributes:
        linear: weights and input activations of the quantized Linears.
        output_projection: the same for what writes an attention's output, whose input may be in groups of head_dim.
        value: the V cache, in groups of head_dim per token; None when it stays in full precision.
        key: the K cache after RoPE, likewise.
    """

    linear: QuantizationScheme
    output_projection: QuantizationScheme
    value: QuantizationArgs | None
    key: QuantizationArgs | None


def resolve(recipe: SchemeRecipe, head_dim: int) -> Numerics:
    """Turn a recipe's scheme into formats.

    `W4A4` is the paper's: weights per channel, symmetric; activations per token, asymmetric unless the recipe
    says otherwise. compressed-tensors' own W4A4, with weights in groups of 128, is `W4A4_G128`. `head_dim`, the size of
    an attention head, is the group size of o_proj's input and of the KV cache.

    Raises:
        Unsupported: a preset that cannot be simulated or loaded yet.
    """
    linear = _linear(recipe)
    symmetric = bool(linear.input_activations.symmetric if linear.input_activations else recipe.activations_symmetric)
    grouped = _with_inputs(linear, strategy="group", group_size=head_dim)
    value, key = (cache_format(bits, head_dim, symmetric) for bits in (recipe.value_bits, recipe.key_bits))
    return Numerics(linear, grouped if recipe.output_projection_groups else linear, value, key)


def supported_presets() -> tuple[str, ...]:
    """Return the names `resolve` accepts, sorted."""
    usable = (name for name, preset in PRESET_SCHEMES.items() if preset and not _obstacle(preset))
    return tuple(sorted({*usable, "W4A4_G128"}))


def _obstacle(preset: dict[str, QuantizationArgs]) -> str | None:
    """Return why a preset cannot be used, or None."""
    if not all(any(grid.holds(args) for grid in GRIDS.values()) for args in preset.values()):
        return f"has numbers that no grid holds (there is {', '.join(GRIDS)})"
    weights = preset["weights"]
    if weights.strategy not in ("channel", "group"):
        return f"has a weight scale per {weights.strategy}; only scales per channel and per group are supported"
    if not weights.symmetric:
        return "packs the weights' zero points, which Transformers cannot load with compressed-tensors 0.20"
    return None


def _linear(recipe: SchemeRecipe) -> QuantizationScheme:
    name, symmetric, supported = recipe.preset.upper(), recipe.activations_symmetric, supported_presets()
    if name not in supported:
        raise Unsupported(f"preset {name} {_obstacle(PRESET_SCHEMES[name])}; supported: {', '.join(supported)}")
    if name == "W4A4":
        inputs = QuantizationArgs(num_bits=4, strategy="token", symmetric=bool(symmetric), dynamic=True)
        weights = QuantizationArgs(num_bits=4, strategy="channel", symmetric=True)
        return QuantizationScheme(targets=["Linear"], weights=weights, input_activations=inputs)
    scheme = preset_name_to_scheme("W4A4" if name == "W4A4_G128" else name, ["Linear"])
    return scheme if symmetric is None else _with_inputs(scheme, symmetric=symmetric)


def _with_inputs(scheme: QuantizationScheme, **changes: object) -> QuantizationScheme:
    """Return a scheme with the format of its input activations changed, if it has one."""
    inputs = scheme.input_activations
    return scheme.model_copy(update={"input_activations": inputs and inputs.model_copy(update=changes)})


def cache_format(bits: int, head_dim: int, symmetric: bool) -> QuantizationArgs | None:
    """Return the format of cached keys or values, with a scale per token and head; None for 16 bits."""
    if bits == 16:
        return None
    return QuantizationArgs(num_bits=bits, strategy="group", group_size=head_dim, symmetric=symmetric, dynamic=True)
