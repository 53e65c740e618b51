"""Every objective against its equation, written out plainly in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from caq.objectives import OBJECTIVES, Objective
from tests.objectives.reference import CONTRASTIVE, RESTRICTED, TOKENS, VOCABULARY, draw, make, reference

VARIANTS = [
    *(make(name) for name in OBJECTIVES),
    *(make(name, renormalize=False) for name in RESTRICTED),
    make("cal", difference="logit"),
    make("cal", difference="logit", renormalize=False, pull_k=10, push_k=5),
    make("cal", pull_k=3, push_k=30, alpha=0.3),
    make("cal", pull_k=VOCABULARY + 1, push_k=10 * VOCABULARY),
]


@pytest.mark.parametrize("objective", VARIANTS, ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_value_terms_and_gradient_follow_the_equation(objective: Objective, seed: int) -> None:
    aligned, base, student = draw(seed)
    expected_student = student.clone().requires_grad_()
    expected = reference(aligned, base, expected_student, objective)
    (expected_gradient,) = torch.autograd.grad(expected["total"], expected_student)

    measured_student = student.float().requires_grad_()
    loss = objective(measured_student, objective.targets(aligned.float(), base.float()), 0.5)
    (gradient,) = torch.autograd.grad(loss.total, measured_student)

    terms = loss.terms()
    assert terms.keys() == expected.keys()
    for name, term in terms.items():
        torch.testing.assert_close(term.double(), expected[name].detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("objective", VARIANTS, ids=str)
def test_targets_hold_only_what_is_declared(objective: Any) -> None:
    aligned, base, _ = draw(2)
    targets = objective.targets(aligned.float(), base.float())
    assert objective.needs_base == (objective.name in CONTRASTIVE)
    assert objective.needs_full == (objective.name not in RESTRICTED)
    if objective.needs_full:
        assert set(targets) == ({"aligned", "negative"} if objective.needs_base else {"aligned"})
        assert targets["aligned"].shape == (TOKENS, VOCABULARY)
        return
    sides = {"pull": objective.pull_k} | ({"push": objective.push_k} if objective.needs_base else {})
    assert set(targets) == {f"{side}_{kind}" for side in sides for kind in ("index", "log_prob")}
    for side, k in sides.items():
        index, log_prob = targets[f"{side}_index"], targets[f"{side}_log_prob"]
        assert (index.dtype, log_prob.dtype) == (torch.int32, torch.float32)
        assert index.shape == log_prob.shape == (TOKENS, min(k, VOCABULARY))
        total = log_prob.exp().sum(-1)
        if objective.renormalize:
            torch.testing.assert_close(total, torch.ones(TOKENS))
        else:
            assert (total <= 1 + 1e-6).all()


OTHER = {"pull_k": 9, "push_k": 3, "difference": "logit", "renormalize": False, "alpha": 0.1}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_options_that_are_declared_decide_the_targets_and_no_others_do(name: str) -> None:
    aligned, base, _ = (logits.float() for logits in draw(5))
    targets = make(name).targets(aligned, base)
    for option in OBJECTIVES[name].model_fields.keys() - {"name"}:
        changed = make(name, **{option: OTHER[option]})
        other = changed.targets(aligned, base)
        same = all(targets[key].shape == other[key].shape and torch.equal(targets[key], other[key]) for key in targets)
        assert same == (option not in changed.targets_options), option


@pytest.mark.parametrize("name", ["kl", "kl-top", "mse"])
def test_the_aligned_model_is_the_minimum_of_a_pull(name: str) -> None:
    aligned, base, _ = (logits.float() for logits in draw(3))
    objective = make(name)
    student = aligned.clone().requires_grad_()
    loss = objective(student, objective.targets(aligned, base), 1.0)
    (gradient,) = torch.autograd.grad(loss.total, student)
    assert loss.total.abs() < 1e-6
    assert gradient.abs().max() < 1e-6


@pytest.mark.parametrize("name", CONTRASTIVE)
def test_a_contrast_is_unbounded_below_where_the_base_outweighs_the_aligned_model(name: str) -> None:
    """The docstring's warning, shown: one token that only the base likes, sent to zero."""
    aligned = torch.tensor([[5.0, 0.0, -5.0]])
    base = torch.tensor([[0.0, 0.0, 5.0]])
    objective = make(name, pull_k=3, push_k=3)
    targets = objective.targets(aligned, base)
    totals = [objective(torch.tensor([[5.0, 0.0, -drop]]), targets, 1.0).total.item() for drop in (10.0, 1e2, 1e3, 1e4)]
    assert totals == sorted(totals, reverse=True)
    assert totals[-1] < -1000


def test_alpha_zero_leaves_the_pull_alone() -> None:
    aligned, base, student = (logits.float() for logits in draw(4))
    contrast, pull = make("cal", alpha=0.0), make("kl-top")
    without_push = contrast(student, contrast.targets(aligned, base), 1.0).total
    torch.testing.assert_close(without_push, pull(student, pull.targets(aligned, None), 1.0).total)


# `reference` on `golden_inputs`, in float64: pinned, so that code and reference cannot drift together.
GOLDEN = {
    "mse": 0.7085040260424512,
    "kl": 0.1913414584665785,
    "kl-top": 0.0970184813695212,
    "contrastive-kl": -1.562658381640742,
    "contrastive-kl-top": -0.7454734293224585,
    "cal": -2.6075426824251995,
}


def golden_inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Return logits given by a formula, so that no random generator's version matters."""
    position = torch.arange(3 * 24, dtype=torch.float32).reshape(3, 24)
    return 3 * torch.sin(position), 3 * torch.cos(1.7 * position), 3 * torch.sin(position + 0.4)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_golden_values(name: str) -> None:
    aligned, base, student = golden_inputs()
    objective = make(name, pull_k=6, push_k=5)
    loss = objective(student, objective.targets(aligned, base), 1.0)
    assert loss.total.item() == pytest.approx(GOLDEN[name], rel=1e-5)
    expected = reference(aligned.double(), base.double(), student.double(), objective)
    assert expected["total"].item() == pytest.approx(GOLDEN[name], rel=1e-12)
