"""From a source to blocks of tokens, drawn by a seed, with every shortfall reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Generator, Tensor

from caq.data.documents import encode, is_blank, wrong
from caq.data.sources import holds_documents, read_documents, read_text
from caq.errors import InvalidInput, refuse
from caq.ledger import Entry
from caq.recipe.sections import DataRecipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Calibration:
    """Calibration data.

    Attributes:
        ids: int64 tokens.
        origin: what they are and how many documents went into them, for the record of the run.
        entries: what was not as asked.
    """

    ids: Int[Tensor, "samples length"]
    origin: Mapping[str, object]
    entries: tuple[Entry, ...]


def token_blocks(
    data: DataRecipe, tokenizer: PreTrainedTokenizerBase, seed: int, *, cache_dir: str | Path | None = None
) -> Calibration:
    """Cut a text into `data.samples` blocks of `data.length` tokens that do not overlap, drawn by `seed`.

    A running text is tokenized once as a whole (the field's WikiText-2 convention). Documents are shuffled, batch by
    batch, and packed one after another until the blocks are full; blank ones are passed over. Chats go through the
    tokenizer's template, which brings its own special tokens, so that none is added twice.

    Equal seeds give equal blocks. A name's text is kept in `cache_dir`, by default `$CAQ_CACHE` or `~/.cache/caq`.

    Raises:
        InvalidInput: unknown, unreadable, malformed, empty, or too short and not `data.allow_short`.
    """
    generator = torch.Generator().manual_seed(seed)
    if not holds_documents(data.text):
        ids = tokenizer(read_text(data.text, cache_dir=cache_dir), verbose=False)["input_ids"]
        return draw_blocks(ids, data, generator, {"source": data.text})
    packed, used = _pack(data, tokenizer, generator, cache_dir)
    return draw_blocks(packed, data, generator, {"source": data.text, "documents": used})


def draw_blocks(
    tokens: Sequence[int], data: DataRecipe, generator: Generator, origin: Mapping[str, object], more: str = "add text"
) -> Calibration:
    """Cut tokens into blocks from a random start and draw `data.samples` of them.

    `more` is what a user can do about a shortfall, for the message.

    Raises:
        InvalidInput: not one block, or too few and not `data.allow_short`.
    """
    count = len(tokens) // data.length
    if count == 0:
        short = f"{data.text}: has {len(tokens):,} tokens, not one block of {data.length:,}"
        raise InvalidInput(f"{short}; lower data.length or {more}")
    entries = () if count >= data.samples else (_shortfall(data, count, more),)
    start = int(torch.randint(len(tokens) - count * data.length + 1, (), generator=generator))
    blocks = torch.tensor(tokens[start : start + count * data.length], dtype=torch.int64).view(count, data.length)
    return Calibration(blocks[torch.randperm(count, generator=generator)[: data.samples]].clone(), origin, entries)


def _shortfall(data: DataRecipe, count: int, more: str) -> Entry:
    message = f"{data.text}: has {count:,} blocks of {data.length:,} tokens, {data.samples:,} were asked for"
    if not data.allow_short:
        raise InvalidInput(f"{message}; {more}, lower data.samples or data.length, or set data.allow_short")
    return Entry("data", "fewer-samples", message, {"asked": data.samples, "found": count, "length": data.length})


def _pack(
    data: DataRecipe, tokenizer: PreTrainedTokenizerBase, generator: Generator, cache_dir: str | Path | None
) -> tuple[list[int], int]:
    """Return the tokens of as many documents as fill the blocks, and how many documents that were."""
    tokens: list[int] = []
    used = 0
    for batch in read_documents(data.text, cache_dir=cache_dir):
        refuse([problem for record in batch for problem in wrong(record, tokenizer)])
        for index in torch.randperm(len(batch), generator=generator).tolist():
            if len(tokens) >= data.samples * data.length:
                return tokens, used
            if not is_blank(batch[index]):
                tokens += encode(batch[index], tokenizer)
                used += 1
    if not tokens:
        raise InvalidInput(f"{data.text}: is empty; give a text to calibrate on")
    return tokens, used
