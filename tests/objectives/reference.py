"""The six objectives written out plainly in float64 from arXiv:2511.07842's equations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from caq.objectives import OBJECTIVES, Objective

TOKENS, VOCABULARY = 5, 40
RESTRICTED = ("kl-top", "contrastive-kl-top", "cal")
CONTRASTIVE = ("contrastive-kl", "contrastive-kl-top", "cal")


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
    if objective.name == "cal":
        by_probability = objective.difference == "probability"
        gap = softmax(aligned) - softmax(base) if by_probability else aligned - base
        return pull, largest(gap.abs(), objective.push_k)
    return pull, largest(base, objective.push_k) if objective.name == "contrastive-kl-top" else everything


def reference(aligned: Tensor, base: Tensor, student: Tensor, objective: Any) -> dict[str, Tensor]:
    """Return total, pull and push of one objective, token by token, from arXiv:2511.07842's equations."""
    if objective.name == "mse":
        total = (student - aligned).square().mean()
        return {"total": total, "pull": total}
    renormalize = objective.name in RESTRICTED and objective.renormalize
    pulls, pushes = [], []
    for p_aligned, p_base, p_student in zip(aligned, base, student, strict=True):
        pulled, pushed = supports(objective, p_aligned, p_base)
        pulls.append(kl_on(p_aligned, p_student, pulled, renormalize))
        pushes.append(kl_on(p_base, p_student, pushed, renormalize))
    pull, push = torch.stack(pulls).mean(), torch.stack(pushes).mean()
    if objective.name not in CONTRASTIVE:
        return {"total": pull, "pull": pull}
    return {"total": pull - objective.alpha * push, "pull": pull, "push": push}
