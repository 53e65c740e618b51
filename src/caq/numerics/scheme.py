"""What a scheme's name means: compressed-tensors' presets, plus the paper's W4A4 and a quantized KV cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Protocol

from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme, preset_name_to_scheme
from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES

from caq.errors import InvalidInput, Unsupported

UNQUANTIZED_BITS = 16
CACHE_BITS = (2, 3, 4, 5, 6, 7, 8, UNQUANTIZED_BITS)


class SchemeRecipe(Protocol):
    """The recipe's fields that choose number formats; `caq.recipe` has the model."""

    @property
    def preset(self) -> str:
        """A preset's name, in any case."""

    @property
    def activations_symmetric(self) -> bool | None:
        """Symmetry of activations and KV cache; None is the preset's own."""

    @property
    def output_projection_groups(self) -> bool:
        """Whether o_proj's input is quantized in groups of head_dim."""

    @property
    def value_bits(self) -> int:
        """Bits of the V cache; 16 is not quantized."""

    @property
    def key_bits(self) -> int:
        """Bits of the K cache; 16 is not quantized."""


@dataclass(frozen=True)
class Numerics:
    """Every number format of one run.

    Attributes:
        linear: weights and input activations of the quantized Linears.
        output_projection: the same for o_proj, whose input may be in groups of head_dim.
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
    says otherwise. compressed-tensors' own W4A4, with weights in groups of 128, is `W4A4_G128`.

    Args:
        recipe: the scheme's part of the recipe.
        head_dim: size of an attention head, the group size of o_proj's input and of the KV cache.

    Raises:
        Unsupported: a preset that exists but is not made of integers.
        InvalidInput: an unknown preset, or options that the preset cannot honour; all of them at once.
    """
    problems = [*_preset_problems(recipe.preset), *_cache_problems(recipe)]
    if problems:
        raise InvalidInput(problems)
    linear = _linear(recipe)
    problems = list(_option_problems(recipe, linear))
    if problems:
        raise InvalidInput(problems)
    symmetric = linear.input_activations.symmetric if linear.input_activations else recipe.activations_symmetric
    return Numerics(
        linear=linear,
        output_projection=_in_groups(linear, head_dim) if recipe.output_projection_groups else linear,
        value=_cache(recipe.value_bits, head_dim, bool(symmetric)),
        key=_cache(recipe.key_bits, head_dim, bool(symmetric)),
    )


def supported_presets() -> tuple[str, ...]:
    """Return the names `resolve` accepts, sorted."""
    usable = (name for name, preset in PRESET_SCHEMES.items() if preset and not _obstacle(preset))
    return tuple(sorted({*usable, "W4A4_G128"}))


def _obstacle(preset: dict[str, QuantizationArgs]) -> str | None:
    """Return why a preset cannot be used, or None."""
    if any(args.type != "int" for args in preset.values()):
        return "is not made of integers, which is all that can be learned through so far"
    if not preset["weights"].symmetric:
        return "packs the weights' zero points, which Transformers cannot load with compressed-tensors 0.20"
    return None


def _preset_problems(preset: str) -> Iterator[str]:
    name, supported = preset.upper(), supported_presets()
    if name in supported:
        return
    if name in PRESET_SCHEMES:
        raise Unsupported(f"preset {name} {_obstacle(PRESET_SCHEMES[name])}; supported: {', '.join(supported)}")
    near = get_close_matches(name, [*supported, *PRESET_SCHEMES], n=3, cutoff=0.0)
    yield f"preset {preset!r} is unknown; the nearest are {', '.join(dict.fromkeys(near))}"


def _cache_problems(recipe: SchemeRecipe) -> Iterator[str]:
    for field, bits in (("value_bits", recipe.value_bits), ("key_bits", recipe.key_bits)):
        if bits not in CACHE_BITS:
            yield f"{field} is {bits}; choose 2 to 8, or {UNQUANTIZED_BITS} for no quantization"


def _option_problems(recipe: SchemeRecipe, linear: QuantizationScheme) -> Iterator[str]:
    if linear.input_activations is not None:
        return
    preset = recipe.preset
    if recipe.output_projection_groups:
        yield f"output_projection_groups needs quantized activations, which {preset} has not; leave it out"
    if recipe.activations_symmetric is not None and recipe.value_bits == recipe.key_bits == UNQUANTIZED_BITS:
        yield f"activations_symmetric is set, but {preset} quantizes no activations; leave it out"


def _linear(recipe: SchemeRecipe) -> QuantizationScheme:
    name, symmetric = recipe.preset.upper(), recipe.activations_symmetric
    if name == "W4A4":
        return _paper_w4a4(bool(symmetric))
    scheme = preset_name_to_scheme("W4A4" if name == "W4A4_G128" else name, ["Linear"])
    if scheme.input_activations is None or symmetric is None:
        return scheme
    activations = scheme.input_activations.model_copy(update={"symmetric": symmetric})
    return scheme.model_copy(update={"input_activations": activations})


def _paper_w4a4(symmetric: bool) -> QuantizationScheme:
    return QuantizationScheme(
        targets=["Linear"],
        weights=QuantizationArgs(num_bits=4, strategy="channel", symmetric=True),
        input_activations=QuantizationArgs(num_bits=4, strategy="token", symmetric=symmetric, dynamic=True),
    )


def _in_groups(linear: QuantizationScheme, head_dim: int) -> QuantizationScheme:
    activations = linear.input_activations
    grouped = _dynamic_groups(activations.num_bits, head_dim, activations.symmetric)
    return QuantizationScheme(
        targets=["re:.*o_proj$"], weights=linear.weights, input_activations=grouped, format=linear.format
    )


def _cache(bits: int, head_dim: int, symmetric: bool) -> QuantizationArgs | None:
    return None if bits == UNQUANTIZED_BITS else _dynamic_groups(bits, head_dim, symmetric)


def _dynamic_groups(bits: int, group_size: int, symmetric: bool) -> QuantizationArgs:
    return QuantizationArgs(num_bits=bits, strategy="group", group_size=group_size, symmetric=symmetric, dynamic=True)
