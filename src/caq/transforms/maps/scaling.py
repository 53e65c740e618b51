"""Positive scalings, one factor per channel or per RoPE pair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from caq.transforms.base import Diagonal, Group, Seen, Statistic


@dataclass(frozen=True)
class Scaling:
    """`T = diag(exp(parameter))`, `count` blocks of `size` channels; starts at 1.

    Attributes:
        paired: channels `i` and `i + size / 2` share a factor. RoPE mixes exactly these two, so this is what makes a
            scaling before RoPE preserve the query-key product.
    """

    count: int
    size: int
    paired: bool = False
    group: ClassVar[Group] = "scaling"
    observes: ClassVar[frozenset[Statistic]] = frozenset()

    def start(self, seen: Seen) -> Float[Tensor, "count free"]:
        """Return zeros: every factor is 1."""
        return torch.zeros(self.count, self.size // 2 if self.paired else self.size)

    def operator(self, parameter: Float[Tensor, "count free"] | None) -> Diagonal:
        """Return the factors `exp(parameter)`, each used twice if paired."""
        if parameter is None:
            return Diagonal(torch.ones(self.count, self.size, dtype=torch.float64))
        factors = parameter.exp()
        return Diagonal(torch.cat((factors, factors), dim=-1) if self.paired else factors)
