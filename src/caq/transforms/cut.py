"""Transforms that are computed once for several backward passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from caq.transforms.base import Operator


@dataclass(frozen=True)
class Cut:
    """Operators cut off from their parameters, in whose tensors gradients gather.

    Attributes:
        operators: by name.
        ends: for each tensor that was cut, the one that knows its parameter, and the one that gathers.
    """

    operators: Mapping[str, Operator]
    ends: tuple[tuple[Tensor, Tensor], ...]

    def backward(self) -> None:
        """Send what has gathered back to the parameters, through each map once."""
        reached = [(tensor, leaf.grad) for tensor, leaf in self.ends if leaf.grad is not None]
        if reached:
            torch.autograd.backward([tensor for tensor, _ in reached], [gradient for _, gradient in reached])


def cut(operators: Mapping[str, Operator]) -> Cut:
    """Cut off operators, which are frozen dataclasses of tensors and plain data."""
    ends: list[tuple[Tensor, Tensor]] = []

    def cut_one(operator: Any) -> Operator:
        named = {field.name: getattr(operator, field.name) for field in fields(operator)}
        tensors = {name: one for name, one in named.items() if isinstance(one, Tensor) and one.requires_grad}
        leaves = {name: one.detach().requires_grad_() for name, one in tensors.items()}
        ends.extend((tensors[name], leaves[name]) for name in leaves)
        result: Operator = replace(operator, **leaves)
        return result

    return Cut({name: cut_one(operator) for name, operator in operators.items()}, tuple(ends))
