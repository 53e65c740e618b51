"""What a document may be, a text or a chat in one of its spellings, and its tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from caq.chat import Messages, encode_chat
from caq.files.records import Record
from caq.tokens import encode as encode_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: A chat is `[{role, content}, …]` or ShareGPT's `[{from, value}, …]`, under any of three names.
CHATS = ("messages", "conversations", "conversation")
KINDS = ("text", *CHATS)
#: Speakers, in ShareGPT's and others' words, as the roles that chat templates know.
ROLES: Mapping[str, str] = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "claude", "model", "bot"), "assistant"),
    **dict.fromkeys(("function_call", "tool_call"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "function_response", "tool_response"), "tool"),
    "system": "system",
}


def content(record: Record, *, chats: bool) -> str | Messages | None:
    """Return what a document says: its chat, its text, or None where it says nothing.

    A chat says nothing where it has no turns, or one without words: an empty message, calls of tools, an image.

    Args:
        record: without anything `wrong`.
        chats: whether the tokenizer has a template; without one, the text of a document that has both is taken.
    """
    kind = _kind(record, chats=chats)
    if kind is None or kind == "text":
        text = record.fields.get("text")
        return text if isinstance(text, str) and text.strip() else None
    turns = [{"role": _role(turn), "content": _words(turn)} for turn in record.fields[kind]]
    # A system prompt that is empty is one that was left out.
    speaks = turns and all(turn["role"] == "system" or str(turn["content"] or "").strip() for turn in turns)
    return [{**turn, "content": turn["content"] or ""} for turn in turns] if speaks else None


def openings(said: str | Messages, tokenizer: PreTrainedTokenizerBase, tokens: int) -> str | Messages:
    """Return what a document says with each response of a chat cut after so many tokens; a text as it is."""
    if isinstance(said, str):
        return said

    def cut(turn: Mapping[str, object]) -> Mapping[str, object]:
        return {**turn, "content": _opening(str(turn["content"]), tokenizer, tokens)}

    return [cut(turn) if turn["role"] == "assistant" else turn for turn in said]


def has_both(record: Record) -> bool:
    """Return whether a document has a chat and a text besides."""
    return bool(record.fields.get("text")) and any(record.fields.get(kind) for kind in CHATS)


def wrong(record: Record, *, chats: bool) -> Iterator[str]:
    """Yield what keeps a document from being read, each as a sentence that names its place."""
    kind = _kind(record, chats=chats)
    if not set(KINDS) & record.fields.keys():
        yield f"{record.where}: needs one of {', '.join(KINDS)}; it has {', '.join(record.fields) or 'nothing'}"
    elif kind == "text" and not isinstance(record.fields["text"], str):
        yield f"{record.where}: text is a {type(record.fields['text']).__name__}, not a string"
    elif kind is not None and kind != "text":
        yield from (f"{record.where}: {problem}" for problem in _wrong_turns(kind, record, chats=chats))


def encode(said: str | Messages, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return a document's tokens: a chat's by its template; a text's with the tokenizer's own BOS, and EOS once.

    Raises:
        InvalidInput: the template refuses the chat.
    """
    if not isinstance(said, str):
        return encode_chat(tokenizer, said)
    ids, end = encode_running(said, tokenizer), tokenizer.eos_token_id
    return ids if end is None or ids[-1:] == [end] else [*ids, end]


def encode_running(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens of a text that goes on: with the tokenizer's own BOS, and without an EOS that it adds."""
    return list(next(encode_texts(tokenizer, [text], add_special_tokens=True)))


def _opening(text: str, tokenizer: PreTrainedTokenizerBase, tokens: int) -> str:
    ids = next(encode_texts(tokenizer, [text], add_special_tokens=False))
    # A character that is cut in half is left out.
    return text if len(ids) <= tokens else tokenizer.decode(list(ids[:tokens])).rstrip("\ufffd")


def _kind(record: Record, *, chats: bool) -> str | None:
    # A table's row has every column; those of other rows are null.
    there = [kind for kind in (*CHATS, "text") if record.fields.get(kind) is not None]
    full = [kind for kind in there if record.fields[kind] not in ("", [])]
    first = (full or there)[:1]
    return "text" if "text" in full and not chats else next(iter(first), None)


def _role(turn: Mapping[str, Any]) -> object:
    speaker = _first(turn, "role", "from")
    return ROLES.get(speaker.lower(), speaker) if isinstance(speaker, str) else speaker


def _words(turn: Mapping[str, Any]) -> Any:
    """Return a turn's words, or None where it has none or others than words; parts are OpenAI's spelling."""
    said = _first(turn, "content", "value")
    if not isinstance(said, list):
        return said
    parts: list[Any] = [part.get("text") if isinstance(part, dict) else part for part in said]
    return "".join(parts) if all(isinstance(part, str) for part in parts) else None


def _first(turn: Mapping[str, Any], *names: str) -> Any:
    return next((turn[name] for name in names if turn.get(name) is not None), None)


def _wrong_turns(kind: str, record: Record, *, chats: bool) -> Iterator[str]:
    speaker, said = ("role", "content") if kind == "messages" else ("from", "value")
    turns = record.fields[kind]
    if not chats:
        yield f"has {kind}, and the tokenizer has no chat template; give text instead"
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        yield f"{kind} is not a list of {{{speaker}, {said}}}"
    elif not all(isinstance(_role(turn), str) and _is_said(turn) for turn in turns):
        yield f"a turn of {kind} lacks {speaker} or {said}"
    # A template may know roles of its own; ShareGPT's speakers have to be told as roles.
    elif strange := {turn["from"] for turn in turns if turn.get("role") is None and _role(turn) not in ROLES.values()}:
        yield f"{kind} are from {', '.join(sorted(strange))}; known: {', '.join(ROLES)}"


def _is_said(turn: Mapping[str, Any]) -> bool:
    said = _first(turn, "content", "value")
    if said is None:
        return not {"content", "value", "tool_calls"}.isdisjoint(turn)
    return isinstance(said, str | list)
