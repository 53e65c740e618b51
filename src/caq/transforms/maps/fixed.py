"""A map of which nothing is learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from caq.transforms.base import Group, Operator, Seen, Statistic


@dataclass(frozen=True)
class Fixed:
    """One operator, whatever is learned around it.

    Attributes:
        act: the operator.
        observes: the statistics that it is made from.
    """

    act: Operator
    observes: frozenset[Statistic] = frozenset()
    group: ClassVar[Group] = "rotation"

    def start(self, seen: Seen) -> None:
        """Return None: nothing is learned."""

    def operator(self, parameter: Tensor | None) -> Operator:
        """Return the operator."""
        return self.act
