"""Where activations, and keys and values as a cache would hold them, are rounded at run time."""

from __future__ import annotations

from collections.abc import Iterator

from compressed_tensors.quantization import QuantizationArgs

from caq.families import Branch
from caq.numerics.scheme import Numerics
from caq.transforms.location import Location
from caq.transforms.online import Step


def cache_steps(branches: tuple[Branch, ...], numerics: Numerics, index: int) -> Iterator[Step]:
    """Yield the rounding of values and keys: per token and head."""
    for branch in branches:
        values = branch.pair("value-output")
        if numerics.value is not None and values is not None:
            yield _rounded(values.writer.path, Location.OUTPUT, numerics.value, index)
        if numerics.key is not None and branch.kind == "attention":
            yield _rounded(branch.module, Location.K_CACHE, numerics.key, index)


def activation_steps(branches: tuple[Branch, ...], numerics: Numerics, index: int) -> Iterator[Step]:
    """Yield all rounding at run time, of the cache and of what the linears read.

    The readers of a norm share its output, so it is rounded once, where it is written.
    """
    yield from cache_steps(branches, numerics, index)
    for branch in branches:
        inputs = numerics.linear.input_activations
        if inputs is not None:
            yield _rounded(branch.norm.path, Location.OUTPUT, inputs, index)
        scheme = numerics.output_projection if branch.kind == "attention" else numerics.linear
        written = scheme.input_activations
        if written is not None:
            yield _rounded(branch.writes.path, Location.INPUT, written, index)


def _rounded(path: str, location: Location, args: QuantizationArgs, index: int) -> Step:
    return Step(path, location, args, index=index)
