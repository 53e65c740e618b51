"""The objectives written out plainly in float64, from arXiv:2511.07842's equations and the docstrings' own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from caq.objectives import OBJECTIVES, UNLABELLED, Objective, Teachers

TOKENS, VOCABULARY = 5, 40
#: Those with tokens of their own to be pulled, and which of them may take softmaxes over the whole vocabulary.
RESTRICTED = ("kl-top", "contrastive-kl-top", "cal", "hinge", "sigmoid-gap", "jensen-shannon", "positive-part")
RENORMALIZED_OR_NOT = ("kl-top", "contrastive-kl-top", "cal")
UNBOUNDED = ("contrastive-kl", "contrastive-kl-top", "cal")
BOUNDED = ("hinge", "sigmoid-gap", "jensen-shannon", "positive-part")
CONTRASTIVE = (*UNBOUNDED, *BOUNDED)
#: Those that push tokens by how much the two teachers differ about them.
DIFFERING = ("cal", "hinge", "sigmoid-gap", "jensen-shannon")


def make(name: str, **options: Any) -> Objective:
    """Return an objective with small supports, and with those of the options that it has."""
    kind = OBJECTIVES[name]
    given = {"pull_k": 7, "push_k": 4, **options}
    objective: Objective = kind(**{key: value for key, value in given.items() if key in kind.model_fields})
    return objective


def draw(seed: int, scale: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    aligned, base, student = torch.randn(3, TOKENS, VOCABULARY, generator=generator, dtype=torch.float64)
    return scale * aligned, scale * base, scale * student


def labels_of(tokens: int) -> Tensor:
    """Return made-up next tokens; the last has none."""
    return torch.tensor([*((3 * token + 1) % 9 for token in range(tokens - 1)), UNLABELLED])


def teachers(aligned: Tensor, base: Tensor | None) -> Teachers:
    return Teachers(aligned, base, labels_of(len(aligned)))


def softmax(logits: Tensor) -> Tensor:
    weights = (logits - logits.max()).exp()
    return weights / weights.sum()


def kl_on(target: Tensor, student: Tensor, support: list[int], renormalize: bool) -> Tensor:
    p, q = softmax(target), softmax(student)
    if renormalize:
        p, q = p / p[support].sum(), q / q[support].sum()
    terms = [p[i] * (p[i].log() - q[i].log()) for i in support]
    return torch.stack(terms).sum()


def largest(score: Tensor, k: int) -> list[int]:
    return sorted(range(len(score)), key=lambda i: -score[i].item())[:k]


def supports(objective: Any, aligned: Tensor, base: Tensor) -> tuple[list[int], list[int]]:
    everything = list(range(len(aligned)))
    pull = largest(aligned, objective.pull_k) if objective.name in RESTRICTED else everything
    if objective.name in DIFFERING:
        by_probability = getattr(objective, "difference", "probability") == "probability"
        gap = softmax(aligned) - softmax(base) if by_probability else aligned - base
        return pull, largest(gap.abs(), objective.push_k)
    return pull, largest(base, objective.push_k) if objective.name == "contrastive-kl-top" else everything


def skewed(first: Tensor, second: Tensor, skew: float) -> Tensor:
    mixed = skew * first + (1 - skew) * second
    return skew * (first * (first / mixed).log()).sum() + (1 - skew) * (second * (second / mixed).log()).sum()


def bounded(aligned: Tensor, base: Tensor, student: Tensor, objective: Any, alpha: float) -> dict[str, Tensor]:
    """Return total, pull and push of one token under an objective that is bounded below."""
    pulled, pushed = supports(objective, aligned, base)
    pull, push = kl_on(aligned, student, pulled, True), kl_on(base, student, pushed, True)
    gap = kl_on(base, aligned, pushed, True) - push
    if objective.name == "hinge":
        return {"total": pull + alpha * gap.clamp(min=0), "pull": pull, "push": push}
    if objective.name == "sigmoid-gap":
        softplus = (1 + (objective.beta * gap).exp()).log()
        return {"total": pull + 2 * alpha / objective.beta * softplus, "pull": pull, "push": push}
    if objective.name == "jensen-shannon":
        push = skewed(softmax(base[pushed]), softmax(student[pushed]), objective.skew)
        return {"total": pull - alpha * push, "pull": pull, "push": push}
    left = (softmax(aligned[pulled]) - alpha * softmax(base[pulled])).clamp(min=0)
    target, log_student = left / left.sum(), softmax(student[pulled]).log()
    terms = [t * (t.log() - q) for t, q in zip(target, log_student, strict=True) if t > 0]
    return {"total": torch.stack(terms).sum(), "pull": pull}


def reference(
    aligned: Tensor, base: Tensor, student: Tensor, objective: Any, alpha: float | None = None
) -> dict[str, Tensor]:
    """Return total, pull and push of one objective, each averaged over tokens; `alpha` takes its own's place."""
    if objective.name == "mse":
        total = (student - aligned).square().mean()
        return {"total": total, "pull": total}
    if objective.name == "cross-entropy":
        told = zip(student[:-1], labels_of(len(student)), strict=False)
        total = torch.stack([-softmax(row)[label].log() for row, label in told]).sum() / len(student)
        return {"total": total, "pull": total}
    renormalize = objective.name in RESTRICTED and getattr(objective, "renormalize", True)
    alpha = getattr(objective, "alpha", 0.0) if alpha is None else alpha
    if objective.name in BOUNDED:
        rows = [bounded(*row, objective, alpha) for row in zip(aligned, base, student, strict=True)]
        return {name: torch.stack([row[name] for row in rows]).mean() for name in rows[0]}
    pulls, pushes = [], []
    for p_aligned, p_base, p_student in zip(aligned, base, student, strict=True):
        pulled, pushed = supports(objective, p_aligned, p_base)
        pulls.append(kl_on(p_aligned, p_student, pulled, renormalize))
        pushes.append(kl_on(p_base, p_student, pushed, renormalize))
    pull, push = torch.stack(pulls).mean(), torch.stack(pushes).mean()
    if objective.name not in CONTRASTIVE:
        return {"total": pull, "pull": pull}
    return {"total": pull - alpha * push, "pull": pull, "push": push}
