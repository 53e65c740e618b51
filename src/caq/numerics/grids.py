"""Grids: the sets of numbers that formats round to. Quantizers and learning know a format only through its grid.

A grid works on rows: the last dimension shares its parameters, groups having been unfolded into it (`as_rows`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from compressed_tensors.quantization import QuantizationArgs
from jaxtyping import Float
from torch import Tensor

from caq.errors import InvalidInput, Unsupported
from caq.numerics.integer import IntegerGrid

#: What codes mean beside the format itself, by name: a scale, perhaps a zero point.
Parameters = Mapping[str, Tensor]


class Grid(Protocol):
    """The numbers that a family of formats can hold."""

    @property
    def code_dtype(self) -> torch.dtype:
        """The smallest dtype that holds every code."""

    def holds(self, args: QuantizationArgs) -> bool:
        """Return whether the grid is the format's."""

    def parameters(
        self, rows: Float[Tensor, "*batch length"], args: QuantizationArgs, dtype: torch.dtype, shrink: float = 1.0
    ) -> dict[str, Float[Tensor, "*batch 1"]]:
        """Return what `nearest` and `values` need, so that the grid covers `shrink` of each row's range.

        `dtype` is the precision in which scales will be stored, unless the format has one of its own.
        """

    def nearest(
        self, x: Float[Tensor, "*shape"], parameters: Parameters, args: QuantizationArgs
    ) -> Float[Tensor, "*shape"]:
        """Return the code nearest to each element, as floats; parameters broadcast against `x`."""

    def values(self, codes: Tensor, parameters: Parameters) -> Float[Tensor, "*shape"]:
        """Return what codes, of any dtype, stand for, in the scale's dtype."""

    def fake(self, rows: Float[Tensor, "*batch length"], args: QuantizationArgs) -> Float[Tensor, "*batch length"]:
        """Return rows as the grid holds them at their own range, differentiable, in their dtype."""


GRIDS: dict[str, Grid] = {"integer": IntegerGrid()}


def grid_of(args: QuantizationArgs) -> Grid:
    """Return the grid of a format.

    Raises:
        Unsupported: no grid holds it.
    """
    for grid in GRIDS.values():
        if grid.holds(args):
            return grid
    raise Unsupported(
        f"no grid holds {args.num_bits}-bit {args.type} numbers (there is {', '.join(GRIDS)}); "
        "choose an integer format, such as the preset W4A4 or W4A16"
    )


def as_rows(
    x: Float[Tensor, "*batch features"], args: QuantizationArgs, per_row: str
) -> Float[Tensor, "*batch rows length"]:
    """Unfold the last dimension into the rows that share parameters: groups, or the whole of it.

    Args:
        x: weights or activations.
        args: the format.
        per_row: the strategy that has one row: `channel` for weights, `token` for activations.

    Raises:
        Unsupported: the strategy is neither `per_row` nor `group`.
        InvalidInput: the group size does not divide the features.
    """
    if args.strategy not in (per_row, "group"):
        raise Unsupported(f"strategy {args.strategy!r} is not supported here; choose {per_row!r} or 'group'")
    length = x.shape[-1] if args.strategy == per_row else int(args.group_size)
    if x.shape[-1] % length:
        raise InvalidInput(f"group size {length} does not divide {x.shape[-1]} features; choose a divisor")
    rows: Tensor = x.unflatten(-1, (-1, length))
    return rows
