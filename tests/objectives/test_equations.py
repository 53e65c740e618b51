"""Every objective against its equation, written out plainly in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from caq.objectives import OBJECTIVES, Loss, Objective
from tests.objectives.reference import (
    CONTRASTIVE,
    RENORMALIZED_OR_NOT,
    RESTRICTED,
    TOKENS,
    VOCABULARY,
    draw,
    make,
    reference,
    teachers,
)

VARIANTS = [
    *(make(name) for name in OBJECTIVES),
    *(make(name, renormalize=False) for name in RENORMALIZED_OR_NOT),
    make("cal", difference="logit"),
    make("cal", difference="logit", renormalize=False, pull_k=10, push_k=5),
    make("cal", pull_k=3, push_k=30, alpha=0.3),
    make("cal", pull_k=VOCABULARY + 1, push_k=10 * VOCABULARY),
    make("hinge", push_k=VOCABULARY, alpha=3.0),
    make("sigmoid-gap", push_k=20, beta=0.1),
    make("jensen-shannon", push_k=20, skew=0.1),
    make("positive-part", pull_k=VOCABULARY, alpha=0.99),
]


@pytest.mark.parametrize("objective", VARIANTS, ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_value_terms_and_gradient_follow_the_equation(objective: Objective, seed: int) -> None:
    aligned, base, student = draw(seed)
    expected_student = student.clone().requires_grad_()
    expected = reference(aligned, base, expected_student, objective)
    (expected_gradient,) = torch.autograd.grad(expected["total"], expected_student)

    measured_student = student.float().requires_grad_()
    loss = objective(measured_student, objective.targets(teachers(aligned.float(), base.float())), 0.5)
    terms = loss.mean()
    (gradient,) = torch.autograd.grad(terms["total"], measured_student)

    assert loss.total.shape == loss.pull.shape == (TOKENS,)
    assert terms.keys() == expected.keys()
    for name, term in terms.items():
        torch.testing.assert_close(term.detach().double(), expected[name].detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("objective", VARIANTS, ids=str)
def test_targets_hold_only_what_is_declared(objective: Any) -> None:
    aligned, base, _ = draw(2)
    targets = objective.targets(teachers(aligned.float(), base.float()))
    assert objective.needs_negative == (objective.name in CONTRASTIVE)
    assert objective.needs_full == (objective.name not in (*RESTRICTED, "cross-entropy"))
    assert all(len(rows) == TOKENS for rows in targets.values())
    if objective.needs_full:
        assert set(targets) == ({"aligned", "negative"} if objective.needs_negative else {"aligned"})
        assert targets["aligned"].shape == (TOKENS, VOCABULARY)
        return
    for key, rows in targets.items():
        if key == "label":
            continue
        # What has no index of its own is on the pulled tokens.
        pushed = key.startswith("push") and "push_index" in targets
        assert rows.shape[1] == min(VOCABULARY, objective.push_k if pushed else objective.pull_k)
        assert rows.dtype == (torch.int32 if key.endswith("index") else torch.float32)
        if key.endswith("log_prob") and getattr(objective, "renormalize", True):
            torch.testing.assert_close(rows.exp().sum(-1), torch.ones(TOKENS))
        elif key.endswith("log_prob"):
            assert (rows.exp().sum(-1) <= 1 + 1e-6).all()


OTHER = {
    "pull_k": 9, "push_k": 3, "difference": "logit", "renormalize": False, "alpha": 0.1,
    "alpha_schedule": "linear", "negative": "rtn", "beta": 3.0, "skew": 0.2,
}  # fmt: skip


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_options_that_are_declared_decide_the_targets_and_no_others_do(name: str) -> None:
    told = teachers(*(logits.float() for logits in draw(5)[:2]))
    targets = make(name).targets(told)
    for option in OBJECTIVES[name].model_fields.keys() - {"name"}:
        changed = make(name, **{option: OTHER[option]})
        other = changed.targets(told)
        same = all(targets[key].shape == other[key].shape and torch.equal(targets[key], other[key]) for key in targets)
        assert same == (option not in changed.targets_options), option


@pytest.mark.parametrize("name", [name for name in CONTRASTIVE if name != "positive-part"])
def test_alpha_zero_leaves_the_pull_alone(name: str) -> None:
    aligned, base, student = (logits.float() for logits in draw(4))
    contrast, pull = make(name, alpha=0.0), make("kl" if name == "contrastive-kl" else "kl-top")
    without_push = contrast(student, contrast.targets(teachers(aligned, base)), 1.0).total
    torch.testing.assert_close(without_push, pull(student, pull.targets(teachers(aligned, None)), 1.0).total)


@pytest.mark.parametrize("name", CONTRASTIVE)
def test_a_schedule_lets_alpha_rise_from_zero_to_its_value(name: str) -> None:
    aligned, base, student = draw(6)
    shares: dict[str, Callable[[float], float]] = {
        "constant": lambda _: 1.0,
        "linear": lambda t: t,
        "cosine": lambda t: (1 - math.cos(math.pi * t)) / 2,
    }
    for schedule, share in shares.items():
        objective: Any = make(name, alpha_schedule=schedule)
        targets = objective.targets(teachers(aligned.float(), base.float()))
        for progress in (0.0, 0.25, 0.5, 1.0):
            loss = objective(student.float(), targets, progress).mean()
            expected = reference(aligned, base, student, objective, objective.alpha * share(progress))
            assert loss["total"].item() == pytest.approx(expected["total"].item(), rel=1e-5)
            assert loss["pull"].item() == pytest.approx(expected["pull"].item(), rel=1e-5)


def test_the_last_token_has_no_next_one_to_be_told() -> None:
    aligned, _, student = (logits.float() for logits in draw(7))
    objective = make("cross-entropy")
    loss = objective(student, objective.targets(teachers(aligned, None)), 1.0)
    assert loss.total[-1] == 0
    assert (loss.total[:-1] > 0).all()


def test_a_weighted_loss_is_the_mean_of_the_weighted_tokens() -> None:
    loss = Loss(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([3.0, 0.0, 3.0]))
    weights = torch.tensor([0.5, 2.0, 0.5])
    assert {name: term.item() for name, term in loss.mean(weights).items()} == {"total": 2.5, "pull": 1.0}
    assert loss.mean()["total"].item() == 3.0


# `reference` on `golden_inputs`, in float64: pinned, so that code and reference cannot drift together.
GOLDEN = {
    "mse": 0.7085040260424512,
    "kl": 0.1913414584665785,
    "kl-top": 0.0970184813695212,
    "cross-entropy": 2.345754292161713,
    "contrastive-kl": -1.562658381640742,
    "contrastive-kl-top": -0.7454734293224585,
    "cal": -2.6075426824251995,
    "hinge": 0.2852903562222156,
    "sigmoid-gap": 1.3453140388226685,
    "jensen-shannon": -0.29941740195078187,
    "positive-part": 0.6027069126250336,
}


def golden_inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Return logits given by a formula, so that no random generator's version matters."""
    position = torch.arange(3 * 24, dtype=torch.float32).reshape(3, 24)
    return 3 * torch.sin(position), 3 * torch.cos(1.7 * position), 3 * torch.sin(position + 0.4)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_golden_values(name: str) -> None:
    aligned, base, student = golden_inputs()
    objective = make(name, pull_k=6, push_k=5)
    loss = objective(student, objective.targets(teachers(aligned, base)), 1.0)
    assert loss.mean()["total"].item() == pytest.approx(GOLDEN[name], rel=1e-5)
    expected = reference(aligned.double(), base.double(), student.double(), objective)
    assert expected["total"].item() == pytest.approx(GOLDEN[name], rel=1e-12)
