"""Perplexity by the convention of the field's WikiText-2 tables.

The text is tokenized once, as it is; windows do not overlap, the remainder is dropped, and the first token
of a window is context only. Published numbers use windows of 2,048 tokens; other windows do not compare
with them.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caq.data.sources import read_text
from caq.errors import InvalidInput
from caq.runners.states import chunk_tokens, inference, window_states, windows_of


def read_tokens(source: Path, tokenizer: PreTrainedTokenizerBase) -> Int[Tensor, " length"]:
    """Tokenize a text, by path or name, as it is, with the tokenizer's default special tokens once.

    Raises:
        InvalidInput: as `caq.data.read_text` raises it.
    """
    return torch.tensor(tokenizer(read_text(source), verbose=False)["input_ids"], dtype=torch.long)


def perplexity(model: PreTrainedModel, token_ids: Int[Tensor, " length"], window: int, batch_size: int) -> float:
    """Return exp of the mean negative log-likelihood (nats) over `window - 1` predictions of every window.

    Raises:
        InvalidInput: the text does not fill one window.
    """
    windows = windows_of(token_ids, window)
    with inference(model) as cut:
        total = sum(negative_log_likelihood(cut.head, *batch) for batch in window_states(cut, windows, batch_size))
    return exp_mean(total, windows[:, 1:].numel())


def exp_mean(total: float, predictions: int) -> float:
    """Return exp(total / predictions); infinity where that overflows.

    Raises:
        InvalidInput: the total is not a number.
    """
    if math.isnan(total):
        raise InvalidInput(["the model's logits are not numbers (NaN); check its weights and scales"])
    return math.exp(total / predictions) if total / predictions < 700 else math.inf


def negative_log_likelihood(
    head: nn.Module, ids: Int[Tensor, "batch window"], states: Float[Tensor, "batch window hidden"]
) -> float:
    """Sum in nats over every token of a batch of windows but each window's first."""
    targets = ids[:, 1:].flatten().split(chunk_tokens(head))
    contexts = states[:, :-1].flatten(0, 1).split(chunk_tokens(head))
    parts = [cross_entropy(head(x).float(), y, reduction="sum") for x, y in zip(contexts, targets, strict=True)]
    return float(torch.stack(parts).double().sum())
