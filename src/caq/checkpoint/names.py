"""Tensors' names as people read them."""

from __future__ import annotations

import re
from collections.abc import Iterable


def folded(names: Iterable[str]) -> list[str]:
    """Fold the layers' numbers, so that 32 equal differences are one sentence: `model.layers.{0…31}.…`."""
    layers: dict[str, list[int]] = {}
    for name in names:
        number = re.search(r"\.(\d+)\.", name)
        pattern = name if number is None else f"{name[: number.start(1)]}#{name[number.end(1) :]}"
        layers.setdefault(pattern, []).extend([] if number is None else [int(number[1])])
    return sorted(pattern.replace("#", _range(sorted(numbers)), 1) for pattern, numbers in layers.items())


def _range(numbers: list[int]) -> str:
    if len(numbers) < 2:
        return "".join(map(str, numbers))
    whole = numbers == list(range(numbers[0], numbers[-1] + 1))
    return f"{{{numbers[0]}…{numbers[-1]}}}" if whole else f"{{{','.join(map(str, numbers))}}}"
