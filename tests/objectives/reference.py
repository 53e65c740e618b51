"""The six objectives written out plainly in float64 from arXiv:2511.07842's equations."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

TOKENS, VOCABULARY = 5, 40
RESTRICTED = ("kl-top", "contrastive-kl-top", "cal")
CONTRASTIVE = ("contrastive-kl", "contrastive-kl-top", "cal")


def recipe(name: str, **options: Any) -> Any:
    defaults = {"alpha": 0.75, "pull_k": 7, "push_k": 4, "difference": "probability", "renormalize": True}
    return SimpleNamespace(name=name, **{**defaults, **options})


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


def supports(name: str, aligned: Tensor, base: Tensor, options: Any) -> tuple[list[int], list[int]]:
    everything = list(range(len(aligned)))
    pull = largest(aligned, options.pull_k) if name in RESTRICTED else everything
    if name == "cal":
        by_probability = options.difference == "probability"
        gap = softmax(aligned) - softmax(base) if by_probability else aligned - base
        return pull, largest(gap.abs(), options.push_k)
    return pull, largest(base, options.push_k) if name in RESTRICTED else everything


def reference(aligned: Tensor, base: Tensor, student: Tensor, options: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Return total and parts of one objective, token by token, from arXiv:2511.07842's equations."""
    if options.name == "mse":
        total = (student - aligned).square().mean()
        return total, {"pull": total}
    pulls, pushes = [], []
    for p_aligned, p_base, p_student in zip(aligned, base, student, strict=True):
        pull, push = supports(options.name, p_aligned, p_base, options)
        pulls.append(kl_on(p_aligned, p_student, pull, options.renormalize))
        pushes.append(kl_on(p_base, p_student, push, options.renormalize))
    pull_part, push_part = torch.stack(pulls).mean(), torch.stack(pushes).mean()
    if options.name not in CONTRASTIVE:
        return pull_part, {"pull": pull_part}
    return pull_part - options.alpha * push_part, {"pull": pull_part, "push": push_part}
