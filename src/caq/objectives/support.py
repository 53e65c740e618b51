"""Distributions on a subset S of the vocabulary (arXiv:2511.07842, steps 3 and 4): S, p^S and KL on S.

`renormalize=True` is the paper's text: p^S is the softmax of the logits on S alone. `renormalize=False` is
the authors' code: the full softmax, of which only the entries on S are summed.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor


def top_k(score: Float[Tensor, "tokens vocab"], k: int) -> Int[Tensor, "tokens K"]:
    """Return the indices (int32) of the K largest scores per token, unordered; K ≤ the vocabulary's size."""
    return score.topk(min(k, score.shape[-1]), dim=-1, sorted=False).indices.int()


def differing(
    aligned: Float[Tensor, "tokens vocab"], negative: Float[Tensor, "tokens vocab"], k: int
) -> Int[Tensor, "tokens K"]:
    """Return S_diff: the indices (int32) of the K largest |p_aligned − p_neg| per token, of both models' logits."""
    return top_k((aligned.float().softmax(-1) - negative.float().softmax(-1)).abs_(), k)


def restricted_log_probs(
    logits: Float[Tensor, "tokens vocab"], *supports: Int[Tensor, "tokens _"], renormalize: bool = True
) -> list[Float[Tensor, "tokens _"]]:
    """Return log p on each support in float32: normalised over the support, or over the vocabulary."""
    # One gather for all supports: its backward fills one vocabulary-wide gradient, whatever their number.
    # Gathered before the cast: a float32 copy of all logits would be the largest tensor of a step.
    gathered = logits.gather(-1, torch.cat(supports, dim=-1).long()).float()
    selected = gathered.split([support.shape[-1] for support in supports], dim=-1)
    if renormalize:
        return [part.log_softmax(-1) for part in selected]
    normalizer = logits.float().logsumexp(-1, keepdim=True)
    return [part - normalizer for part in selected]


def kl(
    target_log_prob: Float[Tensor, "tokens K"], student_log_prob: Float[Tensor, "tokens K"]
) -> Float[Tensor, " tokens"]:
    """Return Σ p·(log p − log q) of every token, in nats; p is the target."""
    gap = target_log_prob - student_log_prob
    return (target_log_prob.exp() * gap).sum(-1)


def jensen_shannon(
    first_log_prob: Float[Tensor, "tokens K"], second_log_prob: Float[Tensor, "tokens K"], skew: float = 0.5
) -> Float[Tensor, " tokens"]:
    """Return s·KL(p ‖ m) + (1 − s)·KL(q ‖ m) of every token with m = s·p + (1 − s)·q, in nats.

    At s = ½ it is the Jensen–Shannon divergence (Lin, 1991). It is at most −s·ln s − (1 − s)·ln(1 − s).
    """
    mixed = torch.logaddexp(first_log_prob + math.log(skew), second_log_prob + math.log1p(-skew))
    return skew * kl(first_log_prob, mixed) + (1 - skew) * kl(second_log_prob, mixed)
