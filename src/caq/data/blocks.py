"""From a source to blocks of tokens, drawn by a seed, with every shortfall reported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Generator, Tensor

from caq.data.documents import content, encode, encode_running, has_both, openings, wrong
from caq.data.sources import holds_documents, read_documents, read_text
from caq.errors import InvalidInput, refuse
from caq.files.records import Record
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
    batch, and packed one after another until the blocks are full; those that say nothing, or that the chat template
    refuses, are passed over and counted. Chats go through the tokenizer's template, which brings its own special
    tokens, so that none is added twice.

    Equal seeds give equal blocks. A name's text is kept in `cache_dir`, by default `$CAQ_CACHE` or `~/.cache/caq`.

    Raises:
        InvalidInput: unknown, unreadable, malformed, empty, or too short and not `data.allow_short`.
    """
    generator = torch.Generator().manual_seed(seed)
    if not holds_documents(data.text):
        ids = encode_running(read_text(data.text, cache_dir=cache_dir), tokenizer)
        return draw_blocks(ids, data, generator, {"source": data.text})
    documents = _pack(data, tokenizer, generator, cache_dir)
    tokens = [token for document in documents for token in document.tokens]
    used = sum(bool(document.tokens) for document in documents)
    blocks = draw_blocks(tokens, data, generator, {"source": data.text, "documents": used})
    departures = _departures(data.text, documents, chats=bool(tokenizer.chat_template))
    return replace(blocks, entries=(*blocks.entries, *departures))


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


@dataclass(frozen=True)
class _Read:
    """A document as it was read.

    Attributes:
        tokens: of it; none where it says nothing, or the template refuses it.
        refused: why the template does.
        both: whether it has a chat and a text.
    """

    tokens: Sequence[int] = ()
    refused: str = ""
    both: bool = False


def _pack(
    data: DataRecipe, tokenizer: PreTrainedTokenizerBase, generator: Generator, cache_dir: str | Path | None
) -> tuple[_Read, ...]:
    """Return as many documents as fill the blocks, with those that were passed over on the way."""
    documents: list[_Read] = []
    missing = data.samples * data.length
    for document in _shuffled(data, tokenizer, generator, cache_dir):
        if missing <= 0:
            return tuple(documents)
        documents.append(document)
        missing -= len(document.tokens)
    if not any(document.tokens for document in documents):
        refuse([document.refused for document in documents if document.refused])
        raise InvalidInput(f"{data.text}: is empty; give a text to calibrate on")
    return tuple(documents)


def _shuffled(
    data: DataRecipe, tokenizer: PreTrainedTokenizerBase, generator: Generator, cache_dir: str | Path | None
) -> Iterator[_Read]:
    chats = bool(tokenizer.chat_template)
    for batch in read_documents(data.text, cache_dir=cache_dir):
        refuse([problem for record in batch for problem in wrong(record, chats=chats)])
        for index in torch.randperm(len(batch), generator=generator).tolist():
            yield _read(batch[index], tokenizer, data.response_tokens, chats=chats)


def _read(record: Record, tokenizer: PreTrainedTokenizerBase, response_tokens: int | None, *, chats: bool) -> _Read:
    said = content(record, chats=chats)
    if said is None:
        return _Read()
    if response_tokens is not None:
        said = openings(said, tokenizer, response_tokens)
    try:
        return _Read(encode(said, tokenizer), both=has_both(record))
    except InvalidInput as error:
        return _Read(refused=f"{record.where}: {'; '.join(error.problems)}")


def _departures(source: str, documents: Sequence[_Read], *, chats: bool) -> Iterator[Entry]:
    """Yield what the ledger is told of documents that were not taken as they are."""
    refused = [document.refused for document in documents if document.refused]
    used = sum(bool(document.tokens) for document in documents)
    counts = {"empty": len(documents) - used - len(refused), "refused": len(refused), "used": used}
    if used < len(documents):
        why = f" and {len(refused):,} that the chat template refuses ({refused[0]})" if refused else ""
        message = f"{source}: passed over {counts['empty']:,} documents that say nothing{why}; used {used:,}"
        yield Entry("data", "documents-passed-over", message, counts)
    both = sum(document.both for document in documents)
    if both:
        taken, left = ("chat", "text") if chats else ("text", "chat")
        why = "" if chats else ", for want of a chat template"
        message = f"{source}: {both:,} documents have a chat and a text; the {taken} was taken{why}"
        yield Entry("data", "one-of-two-taken", message, {"documents": both, "taken": taken, "left": left})
