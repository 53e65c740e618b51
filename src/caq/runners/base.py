"""What a model is to the measuring half: four primitives, whatever computes them. Text goes in, numbers come out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from caq.checkpoint.inspect import Checkpoint
from caq.ledger import Entry


@dataclass(frozen=True)
class Choice:
    """A prompt and the texts that may follow it."""

    prompt: str
    continuations: tuple[str, ...]


@dataclass(frozen=True)
class Passage:
    """A token sequence and how many of its last tokens count: those are predicted, and compared."""

    ids: tuple[int, ...]
    counted: int


@dataclass(frozen=True)
class Response:
    """What a model wrote.

    Attributes:
        text: without special tokens.
        spelled: the same with special tokens as they are spelled, among which marks of thoughts may be.
        tokens: with the one that ended it if one did.
        ended: whether one did.
    """

    text: str
    spelled: str
    tokens: tuple[int, ...]
    ended: bool


#: Float32 logits at counted positions, and the tokens that stand there.
Prediction = tuple[Float[Tensor, "positions vocab"], Int[Tensor, " positions"]]


class Runner(Protocol):
    """A model in memory."""

    def scores(self, choices: Sequence[Choice], *, add_special_tokens: bool = True) -> Sequence[Sequence[float]]:
        """Return log P(continuation | prompt) in nats for every continuation of every choice, in the given order.

        Prompts that hold their special tokens already need `add_special_tokens` False.

        Raises:
            TooLong: all strings longer than the model's context, before anything is computed.
        """

    def greedy(
        self, texts: Sequence[str], max_new_tokens: int, *, add_special_tokens: bool = False
    ) -> tuple[Response, ...]:
        """Return a greedy response to each text.

        Raises:
            TooLong: all texts that leave no room for a response, before anything is computed.
        """

    def predictions(self, passages: Sequence[Passage]) -> Iterator[Prediction]:
        """Yield what the model predicts at the counted positions of all passages, in order, a chunk at a time."""

    def vocabulary_mismatch(self, aligned: Checkpoint) -> str:
        """Return why the model's tokens are not the aligned model's; empty if they are."""

    def encode(self, text: str) -> Sequence[int]:
        """Return a text in the model's own tokens, with its default special tokens."""


@dataclass(frozen=True)
class Source:
    """A model that is whole and safe to load, and that can be loaded here.

    Attributes:
        given: directory, file or hub name, as it was typed.
        runner: its name in `RUNNERS`.
        sha256: of all that decides what it computes.
        context: tokens that it reads; None if that is not known.
        facts: of the model, in words.
        ledger: what the run of CAQ's that made it did otherwise than asked.
        own_tokenizer: whether its tokenizer can be loaded beside its weights; if not, the aligned model's is used.
    """

    given: str
    runner: str
    checkpoint: Checkpoint
    sha256: str
    facts: Mapping[str, str]
    ledger: tuple[Entry, ...] = ()
    own_tokenizer: bool = True
    context: int | None = None


@dataclass(frozen=True)
class Running:
    """How a model is run.

    Attributes:
        device: where; a runner that knows only one place ignores it.
        dtype: of the computation; a runner that has its own ignores it. None takes float32 on a CPU, of which many
            compute bfloat16 slowly, and elsewhere the checkpoint's.
        longest: tokens of the longest sequence that will be asked.
        choices, prompts, tokens: how many choices, responses and tokens of passages are computed together. They bound
            memory, and move the last bits of a logit.
    """

    device: torch.device
    dtype: torch.dtype | None = None
    longest: int = 2048
    choices: int = 32
    prompts: int = 64
    tokens: int = 8192


def vocabulary_mismatch(ours: int | None, theirs: int | None) -> str:
    """Return why two vocabularies of these sizes do not compare; empty if they may."""
    if ours == theirs:
        return ""
    return f"{ours} tokens, and {theirs} in the aligned model: their distributions do not compare"
