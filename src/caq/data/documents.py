"""What a document may be, `text`, `messages` or `conversations`, and its tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from caq.chat import Messages, encode_chat
from caq.errors import InvalidInput
from caq.files.records import Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Plain text; `[{role, content}, …]`; ShareGPT's `[{from, value}, …]`. A document has exactly one.
KINDS = ("text", "messages", "conversations")
#: ShareGPT's speakers as the roles that chat templates know.
ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
_TURNS = {"messages": ("role", "content"), "conversations": ("from", "value")}


def is_blank(record: Record) -> bool:
    """Return whether a document is a text of white space alone, such as many rows of WikiText."""
    text = record.fields.get("text")
    return isinstance(text, str) and not text.strip()


def wrong(record: Record, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Yield what keeps a document from being tokenized, each as a sentence that names its place."""
    kinds = _kinds(record)
    if len(kinds) != 1:
        yield f"{record.where}: needs one of {', '.join(KINDS)}; it has {', '.join(record.fields) or 'nothing'}"
    elif kinds == ["text"] and not isinstance(record.fields["text"], str):
        yield f"{record.where}: text is a {type(record.fields['text']).__name__}, not a string"
    elif kinds != ["text"]:
        yield from (f"{record.where}: {problem}" for problem in _wrong_turns(kinds[0], record, tokenizer))


def encode(record: Record, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return a document's tokens: a chat's by its template; a text's with the tokenizer's own BOS, and EOS once.

    Raises:
        InvalidInput: the template refuses the chat.
    """
    (kind,) = _kinds(record)
    if kind == "text":
        ids = list(tokenizer(record.fields["text"], verbose=False)["input_ids"])
        end = tokenizer.eos_token_id
        return ids if end is None or ids[-1:] == [end] else [*ids, end]
    try:
        return encode_chat(tokenizer, _messages(kind, record))
    except InvalidInput as error:
        raise InvalidInput([f"{record.where}: {problem}" for problem in error.problems]) from error


def _kinds(record: Record) -> list[str]:
    # A table's row has every column; those of other rows are null.
    return [kind for kind in KINDS if record.fields.get(kind) is not None]


def _messages(kind: str, record: Record) -> Messages:
    speaker, said = _TURNS[kind]
    roles = ROLES if kind == "conversations" else {}
    return [{"role": roles.get(turn[speaker], turn[speaker]), "content": turn[said]} for turn in record.fields[kind]]


def _wrong_turns(kind: str, record: Record, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    speaker, said = _TURNS[kind]
    turns = record.fields[kind]
    if not tokenizer.chat_template:
        yield f"has {kind}, and the tokenizer has no chat template; give text instead"
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        yield f"{kind} is not a list of {{{speaker}, {said}}}"
    elif not all(isinstance(turn.get(speaker), str) and isinstance(turn.get(said), str) for turn in turns):
        yield f"a turn of {kind} lacks {speaker} or {said}"
    elif kind == "conversations" and (strange := {turn[speaker] for turn in turns} - ROLES.keys()):
        yield f"conversations are from {', '.join(sorted(strange))}; known: {', '.join(ROLES)}"
