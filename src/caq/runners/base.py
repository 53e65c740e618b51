"""What runs a model in memory: everything that a comparison asks of one, whatever computes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caq.checkpoint.inspect import Checkpoint
from caq.checkpoint.vocabulary import tokenizer_differences
from caq.items.protocols import PROTOCOLS, choose
from caq.items.questions import Question
from caq.items.safety import SafetyInputs, answer_safety
from caq.items.tasks import Tasks
from caq.measure.record import Distances
from caq.measure.refusal import encode_prompts
from caq.measure.results import PRIMARY_PROTOCOL, Answer
from caq.runners.distances import Passage, Reference, keep_reference, read_passages
from caq.runners.generation import greedy_tokens, written
from caq.runners.perplexity import read_tokens
from caq.runners.states import inference, windows_of


@dataclass(frozen=True)
class Written:
    """A response: its text, and its tokens, with the one that ended it if one did."""

    text: str
    tokens: tuple[int, ...]


class Engine(Protocol):
    """A model that can be asked."""

    def answer(self, inputs: SafetyInputs, protocols: Sequence[str]) -> Mapping[str, tuple[Answer, ...]]:
        """Return the answers to safety questions under each protocol."""

    def choose(self, questions: Sequence[Question]) -> tuple[int, ...]:
        """Return the option chosen for each factual question, by the primary protocol."""

    def respond(self, prompts: Sequence[str]) -> tuple[Written, ...]:
        """Return a greedy response to each prompt, which is a user's turn."""

    def windows(self, text: Path) -> Int[Tensor, "windows window"]:
        """Return the windows of a text, by path or name, in the model's own tokens."""

    def read(
        self, passages: Sequence[Passage], references: Sequence[Reference], batch_size: int
    ) -> tuple[float, tuple[Distances, ...]]:
        """Return perplexity on passages, and the distances from each of the references that read them."""

    def leave_states(self, passages: Sequence[Passage], batch_size: int, directory: Path, kind: str) -> None:
        """Leave what others are measured from."""

    def stranger(self, instruct: Checkpoint) -> str:
        """Return why the model's tokens are not the instruct model's; empty if they are."""


@dataclass(frozen=True)
class TransformersEngine:
    """A model that Transformers loads; `tokenizer` perhaps with the chat template of another."""

    model: PreTrainedModel
    checkpoint: Checkpoint
    tokenizer: PreTrainedTokenizerBase
    tasks: Tasks

    def answer(self, inputs: SafetyInputs, protocols: Sequence[str]) -> Mapping[str, tuple[Answer, ...]]:
        """As `Engine`."""
        return answer_safety(self.model, self.tokenizer, inputs, protocols, self.tasks.questions_batch)

    def choose(self, questions: Sequence[Question]) -> tuple[int, ...]:
        """As `Engine`."""
        protocol = {PRIMARY_PROTOCOL: PROTOCOLS[PRIMARY_PROTOCOL]}
        return choose(self.model, self.tokenizer, questions, self.tasks.questions_batch, protocol)[PRIMARY_PROTOCOL]

    def respond(self, prompts: Sequence[str]) -> tuple[Written, ...]:
        """As `Engine`."""
        encoded = encode_prompts(self.tokenizer, prompts)
        tasks = self.tasks
        found = greedy_tokens(self.model, self.tokenizer, encoded, tasks.max_new_tokens, tasks.prompts_batch)
        texts = written(self.tokenizer, found)
        return tuple(Written(text, tuple(tokens)) for text, tokens in zip(texts, found, strict=True))

    def windows(self, text: Path) -> Int[Tensor, "windows window"]:
        """As `Engine`."""
        return windows_of(read_tokens(text, self.tokenizer), self.tasks.window)

    def read(
        self, passages: Sequence[Passage], references: Sequence[Reference], batch_size: int
    ) -> tuple[float, tuple[Distances, ...]]:
        """As `Engine`."""
        with inference(self.model) as cut:
            return read_passages(cut, passages, references, batch_size)

    def leave_states(self, passages: Sequence[Passage], batch_size: int, directory: Path, kind: str) -> None:
        """As `Engine`."""
        with inference(self.model) as cut:
            keep_reference(cut, passages, batch_size, directory, kind)

    def stranger(self, instruct: Checkpoint) -> str:
        """As `Engine`."""
        return other_vocabulary(self.checkpoint, instruct)


def other_vocabulary(ours: Checkpoint, theirs: Checkpoint) -> str:
    """Return why a model's tokens are not the instruct model's; empty if they are."""
    sizes = [one.config.get("vocab_size") for one in (ours, theirs)]
    if sizes[0] != sizes[1]:
        return f"{sizes[0]} tokens, and {sizes[1]} in the instruct model: their distributions do not compare"
    if ours.path != theirs.path and any(tokenizer_differences(theirs, ours)):
        return "other tokens than the instruct model's: their distributions do not compare"
    return ""
