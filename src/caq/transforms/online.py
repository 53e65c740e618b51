"""What happens at run time inside a block: online Hadamards and fake quantization, hooked onto unmodified modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from compressed_tensors.quantization import QuantizationArgs
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from caq.families import Family, Shape
from caq.numerics.fake import fake_quantize_dynamic
from caq.numerics.scheme import Numerics
from caq.recipe import TransformRecipe
from caq.transforms.hadamard import WalshHadamard, online_block

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Site:
    """A place inside a block where activations pass through `function`: a module's input or its output."""

    path: str
    side: str
    function: Function


def hadamard_sites(family: Family, shape: Shape, recipe: TransformRecipe) -> tuple[Site, ...]:
    """Return the online Hadamard before down; queries and keys go through `attention_name` instead."""
    if not recipe.online_down_hadamard:
        return ()
    return (Site(family.mlp.down, "input", WalshHadamard(online_block(shape.intermediate)).apply),)


def activation_sites(family: Family, numerics: Numerics) -> tuple[Site, ...]:
    """Return where activations are quantized.

    The readers of a norm share its output, so it is quantized once, where it is written.
    """
    attention, mlp = family.attention, family.mlp
    inputs, output_inputs = numerics.linear.input_activations, numerics.output_projection.input_activations
    sites = [*value_cache_sites(family, numerics)]
    if inputs is not None:
        sites += [_quantized(attention.norm, "output", inputs), _quantized(mlp.norm, "output", inputs)]
        sites += [_quantized(mlp.down, "input", inputs)]
    if output_inputs is not None:
        sites += [_quantized(attention.output, "input", output_inputs)]
    return tuple(sites)


def value_cache_sites(family: Family, numerics: Numerics) -> tuple[Site, ...]:
    """Return the quantization of values as the cache would hold them: per token and head."""
    if numerics.value is None:
        return ()
    return (_quantized(family.attention.value, "output", numerics.value),)


def _quantized(path: str, side: str, args: QuantizationArgs) -> Site:
    return Site(path, side, partial(fake_quantize_dynamic, args=args))


@contextmanager
def instrumented(block: nn.Module, sites: Iterable[Site]) -> Iterator[None]:
    """Hook `sites` onto `block` for the duration; sites on the same place run in order."""
    handles = install(block, sites)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def install(block: nn.Module, sites: Iterable[Site]) -> list[RemovableHandle]:
    """Hook `sites` onto `block` for good."""
    return [_hook(block.get_submodule(site.path), site) for site in sites]


def _hook(module: nn.Module, site: Site) -> RemovableHandle:
    if site.side == "input":
        return module.register_forward_pre_hook(lambda _, arguments: (site.function(arguments[0]), *arguments[1:]))
    return module.register_forward_hook(lambda _, __, output: site.function(output))


def attention_name(shape: Shape, numerics: Numerics) -> str | None:
    """Register and return the attention implementation that rotates queries and keys and quantizes keys after RoPE.

    Transformers' attention registry is the one place where queries and keys are seen after RoPE without a fork of the
    modelling code. None if keys stay as they are.
    """
    if numerics.key is None:
        return None
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    block = online_block(shape.head_dim)
    rotate, quantize = WalshHadamard(block).apply, partial(fake_quantize_dynamic, args=numerics.key)
    attend, mask = ALL_ATTENTION_FUNCTIONS["sdpa"], ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]

    def quantized_key_attention(
        module: nn.Module,
        query: Float[Tensor, "batch heads queries head_dim"],
        key: Float[Tensor, "batch kv_heads keys head_dim"],
        *rest: Any,
        **options: Any,
    ) -> Any:
        return attend(module, rotate(query), quantize(rotate(key)), *rest, **options)

    symmetry = "symmetric" if numerics.key.symmetric else "asymmetric"
    name = f"caq-key{numerics.key.num_bits}-{symmetry}-{block}"
    ALL_ATTENTION_FUNCTIONS.register(name, quantized_key_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, mask)
    return name
