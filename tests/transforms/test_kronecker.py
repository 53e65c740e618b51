"""Kronecker maps: what they are as dense matrices, which matrices they reach, and what they cost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from caq.transforms.maps.kronecker import Kronecker, KroneckerMap, balanced, orthogonal_start


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def start(size: int) -> KroneckerMap:
    left, right = (orthogonal_start(factor, generator()) for factor in balanced(size))
    return KroneckerMap(left, right)


@pytest.mark.parametrize(("size", "factors"), [(192, (12, 16)), (4096, (64, 64)), (11008, (86, 128)), (13, (1, 13))])
def test_the_factors_are_the_nearest_to_the_root(size: int, factors: tuple[int, int]) -> None:
    assert balanced(size) == factors


def test_it_is_the_dense_matrix_and_its_inverse_transpose() -> None:
    kronecker, x = Kronecker(random(3, 3), random(4, 4, seed=1)), random(5, 12, seed=2)
    dense = torch.kron(kronecker.left, kronecker.right)
    torch.testing.assert_close(kronecker.apply(x), x @ dense)
    torch.testing.assert_close(kronecker.apply_inverse_transpose(x), x @ torch.linalg.inv(dense).mT)


@pytest.mark.parametrize("size", [48, 56, 192])
def test_it_starts_orthogonal_whether_or_not_there_are_hadamard_matrices(size: int) -> None:
    begun = start(size)
    for operator in (begun.operator(None), begun.operator(begun.start({}).double())):
        dense = torch.kron(operator.left, operator.right)
        torch.testing.assert_close(dense @ dense.mT, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-12)


def test_it_reaches_every_matrix_of_a_positive_determinant() -> None:
    matrix = random(5, 5, seed=3)
    matrix[0] *= torch.linalg.det(matrix).sign()
    u, stretches, v = torch.linalg.svd(matrix)
    turn, identity = u @ v, torch.eye(5, dtype=torch.float64)
    skew = 2 * torch.linalg.solve(turn + identity, turn - identity)
    free = skew + v.mT @ stretches.log().diag() @ v
    one = torch.ones(1, 1, dtype=torch.float64)
    reached = KroneckerMap(one, identity).operator(torch.cat((torch.zeros(1).double(), free.flatten())))
    torch.testing.assert_close(reached.right, matrix)


def test_it_stays_invertible_however_far_it_is_learned() -> None:
    begun = start(56)
    operator, x = begun.operator(random(7 * 7 + 8 * 8)), random(3, 56, seed=4)
    product = (operator.apply(x) * operator.apply_inverse_transpose(x)).sum(-1)
    torch.testing.assert_close(product, x.square().sum(-1))


def test_it_costs_less_than_a_dense_matrix_by_half_the_root_of_the_channels() -> None:
    """FlatQuant, section 3.1: `sqrt(n) / 2` times less computation and `n / 2` times less memory."""
    kronecker, x = start(4096).operator(None), torch.zeros(2, 4096, dtype=torch.float64)
    with FlopCounterMode(display=False) as small:
        kronecker.apply(x)
    with FlopCounterMode(display=False) as large:
        x @ torch.zeros(4096, 4096, dtype=torch.float64)
    assert large.get_total_flops() == 32 * small.get_total_flops()
    assert 2048 * (kronecker.left.numel() + kronecker.right.numel()) == 4096**2
