"""Where the optima are: whether the aligned model is one, as each docstring derives, and what bounds a loss below."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.objectives.reference import BOUNDED, CONTRASTIVE, UNBOUNDED, VOCABULARY, draw, make, teachers


def at_the_aligned_model(name: str, **options: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the losses and their gradient where the student is the aligned model, and both teachers' probabilities.

    On the whole vocabulary, so that a gradient can be compared with a formula token by token.
    """
    aligned, base, _ = (logits.float() for logits in draw(3))
    objective = make(name, pull_k=VOCABULARY, push_k=VOCABULARY, **options)
    student = aligned.clone().requires_grad_()
    total = objective(student, objective.targets(teachers(aligned, base)), 1.0).total
    (gradient,) = torch.autograd.grad(total.sum(), student)
    return total.detach(), gradient, aligned.softmax(-1), base.softmax(-1)


@pytest.mark.parametrize("name", ["kl", "kl-top", "mse", "hinge"])
def test_the_aligned_model_is_the_minimum_of_a_pull_and_of_the_hinge(name: str) -> None:
    total, gradient, _, _ = at_the_aligned_model(name)
    assert total.abs().max() < 1e-6
    assert gradient.abs().max() < 1e-6


def test_the_hinge_pushes_a_student_that_is_nearer_to_the_negative_and_no_other() -> None:
    aligned, base, _ = (logits.float() for logits in draw(3))
    hinge, pull = (make(name, pull_k=VOCABULARY, push_k=VOCABULARY) for name in ("hinge", "kl-top"))
    for share, pushed in ((0.1, True), (-0.1, False)):
        student = aligned + share * (base - aligned)
        losses = [of(student, of.targets(teachers(aligned, base)), 1.0).total for of in (hinge, pull)]
        assert bool((losses[0] > losses[1]).all()) == pushed
        assert torch.equal(*losses) != pushed


def _contrast(aligned: Tensor, base: Tensor) -> Tensor:
    return 0.75 * (base - aligned)


def _jensen_shannon(aligned: Tensor, base: Tensor) -> Tensor:
    ratio = (aligned / (0.5 * base + 0.5 * aligned)).log()
    return -0.75 * 0.5 * aligned * (ratio - (aligned * ratio).sum(-1, keepdim=True))


def _positive_part(aligned: Tensor, base: Tensor) -> Tensor:
    left = (aligned - 0.75 * base).clamp(min=0)
    return aligned - left / left.sum(-1, keepdim=True)


@pytest.mark.parametrize(
    ("name", "derived"),
    [
        *((name, _contrast) for name in (*UNBOUNDED, "sigmoid-gap")),
        ("jensen-shannon", _jensen_shannon),
        ("positive-part", _positive_part),
    ],
)
def test_the_aligned_model_is_not_stationary_under_the_others(
    name: str, derived: Callable[[Tensor, Tensor], Tensor]
) -> None:
    _, gradient, aligned, base = at_the_aligned_model(name)
    torch.testing.assert_close(gradient, derived(aligned, base), rtol=1e-4, atol=1e-6)
    assert gradient.abs().max() > 0.01


@pytest.mark.parametrize("beta", [0.3, 1.0, 5.0])
def test_the_sigmoid_pushes_as_hard_as_cal_at_the_aligned_model_and_less_past_it(beta: float) -> None:
    aligned, base, _ = (logits.float() for logits in draw(3))
    objective, cal = make("sigmoid-gap", push_k=VOCABULARY, beta=beta), make("cal", push_k=VOCABULARY)
    norms = []
    for share in (0.0, 0.5, 1.0):
        student = (aligned - share * (base - aligned)).requires_grad_()
        pushes = [of(student, of.targets(teachers(aligned, base)), 1.0).total.sum() for of in (objective, cal)]
        pull = make("kl-top")(student, make("kl-top").targets(teachers(aligned, None)), 1.0).total.sum()
        gradients = [torch.autograd.grad(total - pull, student, retain_graph=True)[0].norm() for total in pushes]
        norms.append((gradients[0] / gradients[1]).item())
    assert norms[0] == pytest.approx(1.0, rel=1e-4)
    assert norms == sorted(norms, reverse=True)
    assert norms[-1] < 0.9


def test_the_positive_part_is_reached_where_the_student_is_it() -> None:
    aligned, base, _ = (logits.float() for logits in draw(3))
    objective = make("positive-part", pull_k=VOCABULARY)
    left = (aligned.softmax(-1) - 0.75 * base.softmax(-1)).clamp(min=1e-30)
    total = objective(left.log(), objective.targets(teachers(aligned, base)), 1.0).total
    assert total.abs().max() < 1e-6


def dropped(name: str) -> list[float]:
    """Return the totals of students that send one token, which only the negative likes, nearer and nearer to zero."""
    aligned, base = torch.tensor([[5.0, 0.0, -5.0]]), torch.tensor([[0.0, 0.0, 5.0]])
    objective = make(name, pull_k=3, push_k=3)
    targets = objective.targets(teachers(aligned, base))
    drops = (10.0, 1e2, 1e3, 1e4)
    return [objective(torch.tensor([[5.0, 0.0, -drop]]), targets, 1.0).total.item() for drop in drops]


@pytest.mark.parametrize("name", UNBOUNDED)
def test_a_contrast_is_unbounded_below_where_the_negative_outweighs_the_aligned_model(name: str) -> None:
    """The docstring's warning, shown: one token that only the negative likes, sent to zero."""
    totals = dropped(name)
    assert totals == sorted(totals, reverse=True)
    assert totals[-1] < -1000


@pytest.mark.parametrize("name", BOUNDED)
def test_the_bounded_ones_are_bounded_there_and_everywhere(name: str) -> None:
    least = -0.75 * torch.log(torch.tensor(2.0)) if name == "jensen-shannon" else torch.tensor(0.0)
    assert min(dropped(name)) >= least - 1e-6
    generator = torch.Generator().manual_seed(0)
    for scale in (1.0, 30.0, 1e4):
        aligned, base, student = scale * torch.randn(3, 200, 30, generator=generator)
        objective = make(name, pull_k=9, push_k=9)
        total = objective(student, objective.targets(teachers(aligned, base)), 1.0).total
        assert total.min() >= least - 1e-5


@pytest.mark.parametrize("name", CONTRASTIVE)
def test_a_negative_that_is_the_aligned_model_leaves_it_stationary(name: str) -> None:
    aligned = draw(3)[0].float()
    objective = make(name, pull_k=VOCABULARY, push_k=VOCABULARY)
    student = aligned.clone().requires_grad_()
    total = objective(student, objective.targets(teachers(aligned, aligned)), 1.0).total.sum()
    (gradient,) = torch.autograd.grad(total, student)
    assert gradient.abs().max() < 1e-6
