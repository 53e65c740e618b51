"""Calibration text: from a file or a name to blocks of tokens, with every shortfall said."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from caq.errors import InvalidInput
from caq.ledger import Entry

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Texts that are known by name: the hub's data set, its configuration and split.
NAMED = {
    "wikitext2": ("Salesforce/wikitext", "wikitext-2-raw-v1", "train"),
    "wikitext2-test": ("Salesforce/wikitext", "wikitext-2-raw-v1", "test"),
}
_SHOWN = 20


def token_blocks(
    source: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    samples: int,
    length: int,
    seed: int,
    allow_short: bool = False,
) -> tuple[Int[Tensor, "samples length"], tuple[Entry, ...]]:
    """Cut a text into `samples` blocks of `length` tokens that do not overlap, drawn at random by `seed`.

    A plain text is tokenized once as a whole (the field's WikiText-2 convention). The records of a .jsonl
    file, `{"text": …}` or `{"messages": […]}`, are shuffled and packed one after another; messages pass
    through the chat template, which brings its own special tokens, so that none is added twice.

    Args:
        source: a file, or a name in `NAMED`.
        tokenizer: the aligned model's.
        samples: blocks wanted.
        length: tokens per block.
        seed: of the draw; equal seeds give equal blocks.
        allow_short: return fewer blocks, with an entry for the ledger, instead of failing.

    Returns:
        int64 token ids, and the ledger entries of what was not as asked.

    Raises:
        InvalidInput: unreadable, malformed, empty, or too short and not `allow_short`.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = _tokens(source, tokenizer, generator)
    found = len(tokens) // length
    if found == 0:
        short = f"{source}: has {len(tokens):,} tokens, not one block of {length:,}"
        raise InvalidInput([f"{short}; lower data.length or add text"])
    entries = () if found >= samples else (_shortfall(source, samples, found, length, allow_short),)
    start = int(torch.randint(len(tokens) - found * length + 1, (), generator=generator))
    blocks = tokens[start : start + found * length].view(found, length)
    return blocks[torch.randperm(found, generator=generator)[:samples]].clone(), entries


def read_text(source: str | Path) -> str:
    """Return the text of a UTF-8 file, or of a data set in `NAMED` (its rows joined by blank lines).

    Raises:
        InvalidInput: no such file or name, not text, or nothing but white space.
    """
    text = _download(str(source)) if _named(source) else _read(Path(source))
    if not text.strip():
        raise InvalidInput([f"{source}: is empty; give a text to calibrate on"])
    return text


def _shortfall(source: str | Path, samples: int, found: int, length: int, allow_short: bool) -> Entry:
    message = f"{source}: has {found:,} blocks of {length:,} tokens, {samples:,} were asked for"
    if not allow_short:
        raise InvalidInput([f"{message}; add text, lower data.samples or data.length, or set data.allow_short"])
    return Entry("data", "fewer-samples", message, {"asked": samples, "found": found, "length": length})


def _tokens(source: str | Path, tokenizer: PreTrainedTokenizerBase, generator: torch.Generator) -> Int[Tensor, " n"]:
    if Path(source).suffix != ".jsonl":
        ids = tokenizer(read_text(source), verbose=False)["input_ids"]
        return torch.tensor(ids, dtype=torch.int64)
    records = _records(Path(source), tokenizer)
    order = torch.randperm(len(records), generator=generator).tolist()
    packed = [token for index in order for token in _encode(records[index], tokenizer)]
    return torch.tensor(packed, dtype=torch.int64)


def _encode(record: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    if "messages" in record:
        text = tokenizer.apply_chat_template(record["messages"], tokenize=False)
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return [*tokenizer(record["text"], verbose=False)["input_ids"], *end]


def _records(path: Path, tokenizer: PreTrainedTokenizerBase) -> Sequence[Mapping[str, Any]]:
    lines = [(number, line) for number, line in enumerate(read_text(path).split("\n"), 1) if line.strip()]
    records: list[Mapping[str, Any]] = []
    problems = []
    for number, line in lines:
        record = _parse(line)
        found = list(_wrong(record, tokenizer))
        problems += [f"{path}, line {number}: {problem}" for problem in found]
        records.append(record if isinstance(record, dict) else {})
    if problems:
        more = [f"{path}: and {len(problems) - _SHOWN} more like these"] if len(problems) > _SHOWN else []
        raise InvalidInput(problems[:_SHOWN] + more)
    return records


def _parse(line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _wrong(record: object, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    if not isinstance(record, dict):
        yield 'is not a JSON object; write {"text": …} or {"messages": […]}'
    elif ("text" in record) == ("messages" in record):
        yield "needs either text or messages, one of the two"
    elif "text" in record and not isinstance(record["text"], str):
        yield f"text is a {type(record['text']).__name__}, not a string"
    elif "messages" in record:
        yield from _wrong_messages(record["messages"], tokenizer)


def _wrong_messages(messages: object, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    if not tokenizer.chat_template:
        yield "has messages, and the tokenizer has no chat template; give text instead"
    if not isinstance(messages, list) or not messages:
        yield "messages is not a list of {role, content}"
    elif not all(isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in messages):
        yield "a message lacks role or content"


def _named(source: str | Path) -> bool:
    return str(source) in NAMED and not Path(source).exists()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            [f"{path}: not UTF-8 text ({error}); give a .txt or .jsonl file, or {' or '.join(NAMED)}"]
        ) from error


def _download(name: str) -> str:
    from datasets import load_dataset

    path, configuration, split = NAMED[name]
    try:
        rows = load_dataset(path, configuration, split=split)["text"]
    except Exception as error:  # datasets documents no closed set of errors
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InvalidInput(
            [f"{name}: cannot be had from the hub ({path}): {reason}; give a text file instead"]
        ) from error
    return "\n\n".join(rows)
