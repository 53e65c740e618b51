"""Learned rotations on the orthogonal manifold, through the Cayley map, and the matrices they start from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from caq.transforms.base import Group, Orthogonal, Seen, Statistic
from caq.transforms.maps.hadamard import random_hadamard


@dataclass(frozen=True)
class Rotation:
    """`T = base @ cayley(parameter)`, one matrix per block; orthogonal for every value of the parameter.

    The manifold is a chart of plain tensors, so that any optimiser works on it and nothing has to be retracted;
    Riemannian Adam on the Stiefel manifold costs the same at hidden size 512 and more at 2048.
    """

    base: Float[Tensor, "count size size"]
    group: ClassVar[Group] = "rotation"
    observes: ClassVar[frozenset[Statistic]] = frozenset()

    def start(self, seen: Seen) -> Float[Tensor, "count size size"]:
        """Return zeros: the rotation starts at `base`."""
        return torch.zeros(self.base.shape, dtype=torch.float32)

    def operator(self, parameter: Float[Tensor, "count size size"] | None) -> Orthogonal:
        """Return the rotation; without a parameter it is `base` itself, in float64."""
        if parameter is None:
            return Orthogonal(self.base)
        return Orthogonal(self.base.to(parameter) @ cayley(parameter))


def cayley(free: Float[Tensor, "count size size"]) -> Float[Tensor, "count size size"]:
    """Return `(I - A/2)^-1 (I + A/2)` with `A` the skew-symmetric part of `free`; `exp(A)` to second order."""
    half_skew = (free - free.mT) / 4
    identity = torch.eye(free.shape[-1], dtype=free.dtype, device=free.device)
    rotation: Tensor = torch.linalg.solve(identity - half_skew, identity + half_skew)
    return rotation


def random_orthogonal(size: int, generator: torch.Generator) -> Float[Tensor, "size size"]:
    """Return a random orthogonal matrix, uniform over all of them, float64."""
    gaussian = torch.randn(size, size, dtype=torch.float64, generator=generator)
    orthogonal, triangular = torch.linalg.qr(gaussian)
    # With the diagonal's signs the factorisation is unique, and only then is its first part uniform.
    signed: Tensor = (orthogonal * triangular.diagonal().sign()).contiguous()
    return signed


def weight_principal_rotation(
    readers: Iterable[Float[Tensor, "out hidden"]], generator: torch.Generator
) -> Float[Tensor, "1 hidden hidden"]:
    """Return WOMI: the eigenvectors of the readers' covariance times a random Hadamard matrix, float64.

    The eigenvectors make the weights' channels uncorrelated, the Hadamard matrix spreads their variance evenly
    (OSTQuant, arXiv:2501.13987, "weight outlier minimization initialization").
    """
    grams = (weight.double().mT @ weight.double() for weight in readers)
    covariance: Tensor = reduce(torch.add, grams)
    _, eigenvectors = torch.linalg.eigh(covariance)
    spread = random_hadamard(covariance.shape[0], generator).to(covariance.device)
    rotation: Tensor = eigenvectors @ spread
    return rotation[None]
