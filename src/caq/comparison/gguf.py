"""A GGUF file as a model to judge: what the comparison asks of every model, answered by llama.cpp.

Prompts are the instruct model's chats, in the file's own tokens. Distances are measured on the instruct model's tokens,
if the file's ids mean the same.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase

from caq.chat import render_chat
from caq.comparison.distances import Passage, Reference, compare, counted, summarise
from caq.comparison.record import Distances
from caq.data.sources import read_text
from caq.evaluate.gguf import (
    Gguf,
    decode,
    encode,
    greedy,
    greedy_tokens,
    predictions,
    scores,
)
from caq.evaluate.multiple_choice import PROTOCOLS, choose_by
from caq.evaluate.perplexity import exp_mean
from caq.evaluate.questions import Question
from caq.evaluate.results import PRIMARY_PROTOCOL, Answer
from caq.evaluate.safety import ANSWER_TOKENS, SafetyInputs, answer_by
from caq.evaluate.states import logits, windows_of


def facts(model: Gguf) -> dict[str, str]:
    """Return what a file is, in words and its hash, with what computes it."""
    with model.path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    description = ctypes.create_string_buffer(256)
    model.engine.llama_model_desc(model.llama.model, description, len(description))
    return {
        "source": str(model.path),
        "sha256": sha256,
        "format": f"GGUF, {description.value.decode(errors='replace')}",
        "weights": f"{model.engine.llama_model_size(model.llama.model):,} bytes",
        "engine": f"llama-cpp-python {version('llama-cpp-python')}, keys and values in float32",
    }


def answer_safety(
    model: Gguf, tokenizer: PreTrainedTokenizerBase, inputs: SafetyInputs, protocols: Sequence[str]
) -> dict[str, tuple[Answer, ...]]:
    """Return the answers to safety questions under each protocol.

    Raises:
        InvalidInput: a question longer than the context, or logits that are not numbers.
    """
    special = not inputs.form.chat
    return answer_by(
        lambda choices: scores(model, choices, add_special_tokens=special),
        lambda texts: greedy(model, texts, ANSWER_TOKENS, add_special_tokens=special),
        tokenizer,
        inputs,
        protocols,
    )


def choose_facts(model: Gguf, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question]) -> tuple[int, ...]:
    """Return the option chosen for each factual question, by the primary protocol."""
    protocol = {PRIMARY_PROTOCOL: PROTOCOLS[PRIMARY_PROTOCOL]}
    return choose_by(lambda choices: scores(model, choices), tokenizer, questions, protocol)[PRIMARY_PROTOCOL]


def respond(
    model: Gguf, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], max_new_tokens: int
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return the text and the tokens of a greedy response to each prompt, a user's turn in the tokenizer's template.

    Raises:
        InvalidInput: prompts that leave no room for a response.
    """
    chats = [render_chat(tokenizer, [{"role": "user", "content": text}], answer=True) for text in prompts]
    found = greedy_tokens(model, list(encode(model, chats, add_special_tokens=False)), max_new_tokens)
    return tuple((decode(model, tokens), tokens) for tokens in found)


def own_windows(model: Gguf, text: Path, window: int) -> Int[Tensor, "windows window"]:
    """Return the windows of a text, by path or name, in the file's own tokens."""
    (ids,) = encode(model, [read_text(text)], add_special_tokens=True)
    return windows_of(torch.tensor(ids, dtype=torch.long), window)


def read_passages(
    model: Gguf, passages: Sequence[Passage], references: Sequence[Reference]
) -> tuple[float, tuple[Distances, ...]]:
    """Return a file's perplexity on passages, and its distances from each of the references that read them.

    Raises:
        InvalidInput: a passage longer than the context, or logits that are not numbers.
    """
    total, row = 0.0, 0
    found: list[list[Float[Tensor, "3 positions"]]] = [[] for _ in references]
    for passage in passages:
        for ours, tokens in predictions(model, passage.ids, passage.counted):
            targets = torch.tensor(tokens)
            total += float(cross_entropy(ours, targets, reduction="sum").double())
            for reference, parts in zip(references, found, strict=True):
                theirs = torch.cat([*logits(reference.head, reference.states[row : row + len(ours)])])
                parts.append(compare(ours, theirs, targets))
            row += len(ours)
    perplexity = exp_mean(total, counted(passages))
    return perplexity, tuple(summarise(*torch.cat(parts, 1).numpy()) for parts in found)
