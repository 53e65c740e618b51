"""Preferences of a model's own: what the aligned model answers (chosen), and what its rounded version does (rejected).

Answers are greedy, by the walk that everything else computes with, so that the rounded model answers as its checkpoint
will. No keys and values are kept: each token of a short answer costs one pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.nn.utils.rnn import pad_sequence

from caq.families import Bound, OwnWeights, Weights
from caq.progress import progress
from caq.train.learner import Prompts, Tokens
from caq.train.rounded import Rounded
from caq.walk import Sites, block_arguments, embed, head_logits, normalized, walk

#: Prompts that are answered together; part of what decides the last bits.
TOGETHER = 16


@dataclass(frozen=True)
class Preference:
    """Two answers to one prompt, the better one first; all are tokens, an answer with the one that ended it if any."""

    prompt: Tokens
    chosen: Tokens
    rejected: Tokens


def preferences(
    rounded: Rounded, parameters: Mapping[str, Tensor], prompts: Prompts, limit: int, *, quiet: bool = False
) -> tuple[Preference, ...]:
    """Return the prompts that the aligned model and the rounded one answer differently, with both answers.

    Args:
        rounded: the rounded model; the aligned one is what it is bound to.
        parameters: of the rounded model.
        prompts: what is asked.
        limit: tokens of an answer.
        quiet: show no progress.
    """
    bound = rounded.bound
    pairs: list[Preference] = []
    with progress("answer: aligned and rounded", len(prompts.tokens), quiet=quiet) as advance:
        for first in range(0, len(prompts.tokens), TOGETHER):
            asked = replace(prompts, tokens=prompts.tokens[first : first + TOGETHER])
            chosen = greedy(bound, OwnWeights(bound), lambda _: (), asked, limit)
            rejected = greedy(bound, rounded.at(parameters), rounded.sites, asked, limit)
            pairs += map(Preference, asked.tokens, chosen, rejected)
            for _ in asked.tokens:
                advance()
    return tuple(pair for pair in pairs if pair.chosen != pair.rejected)


@torch.no_grad()
def greedy(bound: Bound, weights: Weights, sites: Sites, prompts: Prompts, limit: int) -> list[Tokens]:
    """Return the likeliest next tokens behind each prompt, up to `limit`, the end of the answer or the context."""
    rows = [list(prompt) for prompt in prompts.tokens]
    length = min(max(map(len, rows)) + limit, prompts.context)
    ids = torch.zeros(len(rows), length, dtype=torch.long, device=bound.embedding.weight.device)
    for row, prompt in zip(ids, rows, strict=True):
        row[: len(prompt)] = ids.new_tensor(prompt)
    arguments = block_arguments(bound, ids[:1])
    unfinished = list(range(len(rows)))
    for _ in range(limit):
        unfinished = [row for row in unfinished if len(rows[row]) < length and not _ended(rows[row], prompts, row)]
        if not unfinished:
            break
        # What is behind a row's end is not read: attention is causal.
        stream = walk(bound, weights, embed(bound, weights, ids[unfinished]), arguments, sites)
        last = ids.new_tensor([len(rows[row]) - 1 for row in unfinished])
        hidden = normalized(bound, weights, stream[torch.arange(len(unfinished)), last])
        likeliest = head_logits(bound, weights, hidden).argmax(-1)
        for row, token in zip(unfinished, likeliest.tolist(), strict=True):
            ids[row, len(rows[row])] = token
            rows[row].append(token)
    return [tuple(row[len(prompt) :]) for row, prompt in zip(rows, prompts.tokens, strict=True)]


def _ended(tokens: Sequence[int], prompts: Prompts, row: int) -> bool:
    return len(tokens) > len(prompts.tokens[row]) and tokens[-1] in prompts.ends


def margins(rounded: Rounded, parameters: Mapping[str, Tensor], pairs: Sequence[Preference]) -> Float[Tensor, " pairs"]:
    """Return log p(chosen) − log p(rejected) of each pair, in nats, float32; differentiable in the parameters."""
    sequences = [(pair.prompt, answer) for pair in pairs for answer in (pair.chosen, pair.rejected)]
    rows = [torch.tensor([*prompt, *answer]) for prompt, answer in sequences]
    ids = pad_sequence(rows, batch_first=True).to(rounded.device)
    answered = pad_sequence([_answered(*sequence) for sequence in sequences], batch_first=True).to(rounded.device)
    hidden = rounded.final_hidden_states(ids, parameters, block_arguments(rounded.bound, ids[:1]))
    told = _log_likelihood(rounded.logits(hidden[:, :-1][answered[:, 1:]]), ids[answered])
    sums = torch.stack([one.sum() for one in told.split([len(answer) for _, answer in sequences])])
    return sums[0::2] - sums[1::2]


def dpo(margin: Float[Tensor, " pairs"], reference: Float[Tensor, " pairs"], beta: float) -> Float[Tensor, " pairs"]:
    """Return DPO's loss (arXiv:2305.18290, eq. 7): −log σ(β·(margin − the reference model's))."""
    return -logsigmoid(beta * (margin - reference))


def _answered(prompt: Tokens, answer: Tokens) -> Tensor:
    return torch.tensor([False] * len(prompt) + [True] * len(answer))


def _log_likelihood(logits: Float[Tensor, "tokens vocab"], targets: Int[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
    return logits.float().log_softmax(-1).gather(-1, targets[:, None])[:, 0]
