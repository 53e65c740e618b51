"""Rotations in blocks on both sides of a permutation, made from channels' magnitudes (DuQuant, arXiv:2406.01721)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from caq.transforms.base import Orthogonal


@dataclass(frozen=True)
class PermutedRotations:
    """`x R1 P R2`, with block-diagonal rotations and a permutation; orthogonal, so that `T^-T = T`.

    Attributes:
        first, second: the rotations' blocks.
        order: for each channel of the permuted activation, which one it is; whole numbers.
    """

    first: Float[Tensor, "blocks size size"]
    order: Float[Tensor, " features"]
    second: Float[Tensor, "blocks size size"]

    def apply(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        """Return `x T`, in the precision of `x`."""
        mixed = Orthogonal(self.first).apply(x)
        return Orthogonal(self.second).apply(mixed.index_select(-1, self.order.long().to(x.device)))

    def apply_inverse_transpose(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        """Return `x T^-T`, which is `x T`."""
        return self.apply(x)


def spreading(
    magnitudes: Float[Tensor, " features"], mixing: Float[Tensor, "size size"], steps: int
) -> PermutedRotations:
    """Return the map that spreads channels of these magnitudes, float64.

    The magnitudes are treated as one token that has all of them at once: the largest that rotations could meet.

    Args:
        magnitudes: the largest absolute value of each channel.
        mixing: from `uniform_rotation`, of the blocks' size.
        steps: rotations that are multiplied, at most.
    """
    row = magnitudes.double().cpu().reshape(-1, mixing.shape[0])
    first = outlier_rotation(row, mixing, steps)
    rotated = (row[:, None] @ first)[:, 0]
    order = zigzag(rotated.flatten().abs(), row.shape[0])
    second = outlier_rotation(rotated.flatten()[order].reshape(row.shape), mixing, steps)
    return PermutedRotations(first, order.double(), second)


def uniform_rotation(size: int, generator: torch.Generator) -> Float[Tensor, "size size"]:
    """Return a random orthogonal matrix whose first row has equal entries, float64: it spreads the first channel."""
    columns = torch.randn(size, size, dtype=torch.float64, generator=generator)
    columns[:, 0] = 1
    orthogonal: Tensor = torch.linalg.qr(columns)[0].mT.contiguous()
    return orthogonal


def outlier_rotation(
    rows: Float[Tensor, "blocks size"], mixing: Float[Tensor, "size size"], steps: int
) -> Float[Tensor, "blocks size size"]:
    """Return for each block the product of up to `steps` rotations after which its largest magnitude is smallest.

    Every rotation spreads the channel that is the largest then: it is exchanged with the first, mixed, and exchanged
    back (section 3.2, equation 3). With no rotation at all if none lowers it.
    """
    work, outliers, largest = rows, [], [rows.abs().amax(-1)]
    for _ in range(steps):
        outliers.append(work.abs().argmax(-1))
        exchange = _exchanges(outliers[-1], rows.shape[1])
        work = (work.gather(-1, exchange) @ mixing).gather(-1, exchange)
        largest.append(work.abs().amax(-1))
    taken = torch.stack(largest).argmin(0)
    product = torch.eye(rows.shape[1], dtype=rows.dtype).repeat(rows.shape[0], 1, 1)
    for step in range(int(taken.max())):
        exchange = _exchanges(outliers[step], rows.shape[1])[:, None].expand_as(product)
        longer = (product.gather(-1, exchange) @ mixing).gather(-1, exchange)
        product = torch.where((step < taken)[:, None, None], longer, product)
    return product


def _exchanges(channels: Tensor, size: int) -> Tensor:
    """Return for each block the order of its channels with one of them and the first exchanged."""
    order = torch.arange(size).repeat(len(channels), 1)
    order[:, 0] = channels
    return order.scatter(1, channels[:, None], torch.zeros_like(channels)[:, None])


def zigzag(magnitudes: Float[Tensor, " features"], blocks: int) -> Tensor:
    """Return the order that deals channels to blocks by falling magnitude, forth and back (section 3.3).

    Returns:
        int64: the channels of the first block, of the second, and so on.
    """
    ranked = magnitudes.argsort(descending=True, stable=True).reshape(-1, blocks)
    ranked[1::2] = ranked[1::2].flip(-1)
    return ranked.mT.flatten()
