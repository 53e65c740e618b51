"""Sizes of weight groups that divide what a model's linears read."""

from __future__ import annotations

from collections.abc import Collection
from math import gcd

#: A smaller group spends more bits on scales than it saves.
SMALLEST = 16
#: Engines' kernels have no others: vLLM's Marlin serves groups of 128, 64 and 32, and channels.
SERVED = (128, 64, 32)


def largest_group(asked: int, inputs: Collection[int]) -> int | None:
    """Return the largest group that divides all inputs and is not larger than asked; None: only whole channels do.

    What is asked for is taken where it divides. Else the sizes that engines serve come first: 64 rather than 96 for
    inputs of 576 and 1,536.
    """
    dividing = [size for size in dividing_groups(inputs) if size <= asked]
    if not inputs or asked in dividing:
        return asked
    return next((size for size in SERVED if size in dividing), max(dividing, default=None))


def dividing_groups(inputs: Collection[int]) -> list[int]:
    """Return every size of a group that divides all inputs, down to `SMALLEST`, the largest first."""
    common = gcd(*inputs)
    return [size for size in range(common, SMALLEST - 1, -1) if common % size == 0]
