"""Rotations in blocks on both sides of a permutation, made from channels' magnitudes (DuQuant, arXiv:2406.01721)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
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

    def apply_inverse(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        """Return `x T^-1`, in the precision of `x`."""
        mixed = Orthogonal(self.second).apply_inverse(x)
        back = self.order.long().argsort().to(x.device)
        return Orthogonal(self.first).apply_inverse(mixed.index_select(-1, back))


def spreading(magnitudes: Float[Tensor, " features"], signs: Float[Tensor, "steps size"]) -> PermutedRotations:
    """Return the map that spreads channels of these magnitudes, float64.

    The magnitudes are treated as one token that has all of them at once: the largest that rotations could meet.

    Args:
        magnitudes: the largest absolute value of each channel.
        signs: 1 and -1, a row for each rotation that is multiplied, at most, as long as a block.
    """
    row = magnitudes.double().cpu().reshape(-1, signs.shape[1])
    first = outlier_rotation(row, signs)
    rotated = (row[:, None] @ first).flatten()
    order = zigzag(rotated.abs(), len(row))
    return PermutedRotations(first, order.double(), outlier_rotation(rotated[order].reshape(row.shape), signs))


def random_signs(steps: int, size: int, generator: torch.Generator) -> Float[Tensor, "steps size"]:
    """Return random signs, float64."""
    return 2 * torch.randint(2, (steps, size), generator=generator).double() - 1


def outlier_rotation(
    rows: Float[Tensor, "blocks size"], signs: Float[Tensor, "steps size"]
) -> Float[Tensor, "blocks size size"]:
    """Return for each block the product of those rotations after which its largest magnitude is smallest.

    Each spreads what is the largest channel then evenly over the block (section 3.2): any orthogonal matrix does that
    whose row of this channel has entries of one magnitude. It is the reflection of the channel's axis onto a row of the
    signs, which costs the square of the block's size and not the cube. A block whose largest magnitude none lowers
    takes none.
    """
    work, axes, largest = rows, [], [rows.abs().amax(-1)]
    for sign in signs:
        axes.append(_reflection(work.abs().argmax(-1), sign))
        work = work - 2 * (work * axes[-1]).sum(-1, keepdim=True) * axes[-1]
        largest.append(work.abs().amax(-1))
    taken = torch.stack(largest).argmin(0)
    product = torch.eye(rows.shape[1], dtype=rows.dtype).repeat(len(rows), 1, 1)
    for step in range(int(taken.max())):
        axis = torch.where((step < taken)[:, None], axes[step], 0)
        product = product - 2 * (product @ axis[..., None]) * axis[:, None]
    return product


def _reflection(channels: Int[Tensor, " blocks"], sign: Float[Tensor, " size"]) -> Float[Tensor, "blocks size"]:
    """Return for each block the unit normal of the mirror between the axis of its channel and a row of signs."""
    size = len(sign)
    axes = torch.nn.functional.one_hot(channels, size).to(sign)
    # The channel's own sign is such that axis and row are never the same.
    normals = axes - torch.where(axes == 1, -1, sign) / size**0.5
    unit: Tensor = normals / normals.norm(dim=-1, keepdim=True)
    return unit


def zigzag(magnitudes: Float[Tensor, " features"], blocks: int) -> Int[Tensor, " features"]:
    """Return the channels of the first block, of the second, and so on, dealt by falling magnitude, forth and back.

    See section 3.3.
    """
    ranked = magnitudes.argsort(descending=True, stable=True).reshape(-1, blocks)
    ranked[1::2] = ranked[1::2].flip(-1)
    return ranked.mT.flatten()
