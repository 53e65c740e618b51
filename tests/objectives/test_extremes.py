"""Objectives at the edges: huge logits, low precision, large K, missing teachers, wrong names."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from caq.objectives import OBJECTIVES, Teachers
from tests.objectives.reference import CONTRASTIVE, RESTRICTED, make, teachers


@pytest.mark.parametrize("name", OBJECTIVES)
@given(
    seed=st.integers(0, 2**31),
    magnitude=st.floats(0.0, 1e4),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    k=st.integers(1, 100),
    renormalize=st.booleans(),
    difference=st.sampled_from(["probability", "logit"]),
)
@settings(max_examples=60, deadline=None)
def test_value_and_gradient_are_finite(
    name: str,
    seed: int,
    magnitude: float,
    dtype: torch.dtype,
    k: int,
    renormalize: bool,
    difference: str,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = magnitude * (2 * torch.rand(3, 4, 33, generator=generator) - 1)
    aligned, base, student = logits.to(dtype)
    student.requires_grad_()
    objective = make(name, pull_k=k, push_k=k + 3, renormalize=renormalize, difference=difference)
    loss = objective(student, objective.targets(teachers(aligned, base)), 1.0)
    (gradient,) = torch.autograd.grad(loss.mean()["total"], student)
    assert loss.total.dtype == torch.float32
    assert all(value.isfinite() for value in loss.mean().values())
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_opposite_certainties_at_ten_thousand(name: str) -> None:
    aligned, base = torch.full((2, 9), -1e4), torch.full((2, 9), -1e4)
    student = torch.full((2, 9), -1e4)
    aligned[:, 0], base[:, 1], student[:, 2] = 1e4, 1e4, 1e4
    student.requires_grad_()
    objective = make(name, pull_k=50, push_k=50)
    loss = objective(student, objective.targets(teachers(aligned, base)), 1.0)
    (gradient,) = torch.autograd.grad(loss.mean()["total"], student)
    assert loss.total.isfinite().all()
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("name", RESTRICTED)
def test_low_precision_students_are_compared_in_float32(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    aligned, base, student = torch.randn(3, 64, 300, generator=generator)
    objective = make(name, pull_k=50, push_k=50)
    targets = objective.targets(teachers(aligned, base))
    rounded = student.bfloat16()
    assert torch.equal(*(objective(logits, targets, 1.0).total for logits in (rounded, rounded.float())))


@pytest.mark.parametrize("name", CONTRASTIVE)
def test_a_contrast_without_a_negative_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="needs a negative's logits"):
        make(name).targets(teachers(torch.zeros(1, 9), None))


def test_a_next_token_that_nobody_told_is_refused() -> None:
    with pytest.raises(ValueError, match="needs the tokens of the calibration text"):
        make("cross-entropy").targets(Teachers(torch.zeros(1, 9)))
