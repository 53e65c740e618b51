"""A made-up runner, outside of the package: its model repeats a word, and finds every token equally likely."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from caq.checkpoint.inspect import Checkpoint
from caq.runners.base import Choice, Passage, Prediction, Response, Running, Source


@dataclass(frozen=True)
class Parrot:
    """What `word.parrot` holds, said again and again."""

    word: str
    tokenizer: PreTrainedTokenizerBase

    def scores(self, choices: Sequence[Choice], *, add_special_tokens: bool = True) -> Sequence[Sequence[float]]:
        return [[-float(len(text)) for text in choice.continuations] for choice in choices]

    def greedy(
        self, texts: Sequence[str], max_new_tokens: int, *, add_special_tokens: bool = False
    ) -> tuple[Response, ...]:
        return tuple(Response(self.word, self.word, tuple(self.encode(self.word)), ended=True) for _ in texts)

    def predictions(self, passages: Sequence[Passage]) -> Iterator[Prediction]:
        for passage in passages:
            yield torch.zeros(passage.counted, len(self.tokenizer)), torch.tensor(passage.ids[-passage.counted :])

    def vocabulary_mismatch(self, aligned: Checkpoint) -> str:
        return ""

    def encode(self, text: str) -> Sequence[int]:
        return list(self.tokenizer(text)["input_ids"])


def find(given: str) -> Source:
    checkpoint = Checkpoint(Path(given), {}, {}, ())
    word = Path(given).read_text(encoding="utf-8")
    return Source(given, "parrot", checkpoint, word, {"source": given}, own_tokenizer=False)


def tokenization(
    source: Source, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, add_special_tokens: bool
) -> str:
    return ""


@contextmanager
def running(source: Source, tokenizer: PreTrainedTokenizerBase, how: Running) -> Iterator[Parrot]:
    yield Parrot(source.checkpoint.path.read_text(encoding="utf-8"), tokenizer)
