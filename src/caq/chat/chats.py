"""Chats as texts and tokens: through the tokenizer's own template, with its special tokens once and a fixed date."""

from __future__ import annotations

from typing import TYPE_CHECKING

from caq.chat.manner import ChatOptions, Manner, manner
from caq.chat.template import Messages, Template, find_template, render
from caq.errors import InvalidInput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_TEMPLATE = (
    "the tokenizer has no chat template; give the aligned model's tokenizer, or put the template into a file "
    "chat_template.jinja beside it (a chat_template.json is read by processors alone)"
)
_NOTHING: ChatOptions = {}


def manner_of(tokenizer: PreTrainedTokenizerBase, options: ChatOptions = _NOTHING) -> Manner:
    """Return how chats are put to a tokenizer's model.

    Raises:
        InvalidInput: the tokenizer has no chat template.
        Unsupported: the template takes too much time or memory.
    """
    return manner(_template(tokenizer), options)


def render_chat(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, options: ChatOptions = _NOTHING, *, answer: bool = False
) -> str:
    """Return a chat as the template writes it, special tokens included and its switches of thinking off.

    A message has `role` and `content`. With `answer` the text ends where the assistant's next turn begins. `options`
    are the template's variables by name, and come before what is found for them.

    Raises:
        InvalidInput: there is no template, or it rejects the chat, as some do where roles do not alternate.
        Unsupported: the template takes too much time or memory.
    """
    template = _template(tokenizer)
    asked = manner(template, options)
    return render(template, asked.begun(messages), asked.variables, answer=answer)


def render_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str, options: ChatOptions = _NOTHING) -> str:
    """Return a prompt as a user's turn, up to where the assistant's begins.

    Raises:
        InvalidInput, Unsupported: as `render_chat`.
    """
    return render_chat(tokenizer, [{"role": "user", "content": prompt}], options, answer=True)


def encode_chat(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, options: ChatOptions = _NOTHING, *, answer: bool = False
) -> list[int]:
    """Return the token ids of `render_chat`; the template writes its special tokens, so the tokenizer adds none.

    Raises:
        InvalidInput, Unsupported: as `render_chat`.
    """
    text = render_chat(tokenizer, messages, options, answer=answer)
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _template(tokenizer: PreTrainedTokenizerBase) -> Template:
    found = find_template(tokenizer)
    if found is None:
        raise InvalidInput(NO_TEMPLATE)
    return found
