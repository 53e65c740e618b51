"""Hadamard matrices: orthogonal in every size that is claimed, and cheap where they run online."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import hadamard
from torch import Tensor

from caq.errors import Unsupported
from caq.transforms.maps.hadamard import WalshHadamard, online_block, random_hadamard, random_head_rotations, sylvester
from caq.transforms.pairs import ValueOutputRotation
from caq.transforms.plan import Plan
from caq.transforms.residual_rotation import ResidualRotation
from caq.transforms.spec import TransformSpec
from tests.support.tiny import tiny_model
from tests.support.transforming import bound_to, plan_of

#: Hidden and head sizes of real models among them: 80, 96, 576, 768, 896, 960, 1536.
SIZES = (1, 2, 12, 20, 28, 36, 40, 44, 48, 52, 56, 60, 64, 80, 92, 96, 108, 140, 156, 172, 576, 768, 896, 960, 1536)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distance_from_orthogonal(matrix: Tensor) -> float:
    return float((matrix @ matrix.mT - torch.eye(matrix.shape[-1], dtype=matrix.dtype)).abs().max())


@pytest.mark.parametrize("size", SIZES)
def test_a_random_hadamard_is_orthogonal_with_entries_of_one_magnitude(size: int) -> None:
    matrix = random_hadamard(size, generator())
    assert matrix.dtype == torch.float64
    assert distance_from_orthogonal(matrix) < 1e-12
    torch.testing.assert_close(matrix.abs(), torch.full_like(matrix, size**-0.5), rtol=1e-12, atol=0)


@pytest.mark.parametrize("size", [3, 6, 10, 18, 50, 126])
def test_a_size_without_a_hadamard_matrix_is_refused(size: int) -> None:
    with pytest.raises(Unsupported, match=f"no Hadamard matrix of size {size} is known"):
        random_hadamard(size, generator())


def test_the_seed_decides_a_random_hadamard() -> None:
    one, same, other = (random_hadamard(48, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_heads_start_from_different_rotations() -> None:
    first, second = random_head_rotations(2, 12, generator())
    assert distance_from_orthogonal(first) < 1e-12
    assert not torch.equal(first, second)


@pytest.mark.parametrize("size", [1, 2, 4, 32, 256])
def test_sylvester_is_the_textbook_matrix(size: int) -> None:
    expected = torch.from_numpy(hadamard(size)).double() / size**0.5
    assert torch.equal(sylvester(size), expected)


@pytest.mark.parametrize(
    ("size", "block"), [(14336, 2048), (11008, 256), (8960, 256), (4864, 256), (4096, 4096), (56, 8), (7, 1)]
)
def test_the_online_block_is_the_largest_power_of_two_that_divides(size: int, block: int) -> None:
    assert online_block(size) == block


@given(exponent=st.integers(0, 7), blocks=st.integers(1, 5), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_the_fast_hadamard_is_the_dense_one_and_its_own_inverse(exponent: int, blocks: int, seed: int) -> None:
    block = 2**exponent
    x = torch.randn(3, blocks * block, generator=generator(seed), dtype=torch.float64)
    fast = WalshHadamard(block)
    dense = torch.block_diag(*[sylvester(block)] * blocks)
    torch.testing.assert_close(fast.apply(x), x @ dense, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(fast.apply_inverse_transpose(fast.apply(x)), x, rtol=1e-12, atol=1e-12)


def tiny_plan(*specs: TransformSpec, **sizes: Any) -> Plan:
    return plan_of(bound_to(tiny_model("llama", **sizes)), specs)


def test_a_model_whose_hidden_size_has_no_hadamard_is_refused_with_the_settings_that_avoid_it() -> None:
    sizes = dict(hidden_size=50, num_attention_heads=5, num_key_value_heads=5, head_dim=10)
    with pytest.raises(Unsupported, match=r"size 50 is known.*take residual-rotation out"):
        tiny_plan(ResidualRotation(), **sizes)
    with pytest.raises(Unsupported, match=r"size 10 is known.*value-output-rotation"):
        tiny_plan(ValueOutputRotation(), **sizes)
    assert tiny_plan(**sizes).residual is None
