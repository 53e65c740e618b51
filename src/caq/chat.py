"""Chats as tokens: through the tokenizer's own template, with its special tokens once and a fixed date."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from caq.errors import InvalidInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: The date that the templates of LLaMA 3.1 and later write; by default they write today's, and a recipe's tokens would
#: change from day to day.
DATE = "26 Jul 2024"

NO_TEMPLATE = "the tokenizer has no chat template; give the aligned model's tokenizer"

Messages = Sequence[Mapping[str, object]]


def render_chat(tokenizer: PreTrainedTokenizerBase, messages: Messages, *, answer: bool = False) -> str:
    """Return a chat as the template writes it, special tokens included.

    A message has `role` and `content`. With `answer` the text ends where the assistant's next turn begins.

    Raises:
        InvalidInput: the template rejects the chat, as some do where roles do not alternate.
    """
    from jinja2 import TemplateError

    try:
        text = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=answer, date_string=DATE
        )
    except TemplateError as error:
        raise InvalidInput(f"the chat template refuses it: {error}") from error
    return str(text)


def render_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """Return a prompt as a user's turn, up to where the assistant's begins.

    Raises:
        InvalidInput: the tokenizer has no chat template, or the template rejects the turn.
    """
    if tokenizer.chat_template is None:
        raise InvalidInput(NO_TEMPLATE)
    return render_chat(tokenizer, [{"role": "user", "content": prompt}], answer=True)


def encode_chat(tokenizer: PreTrainedTokenizerBase, messages: Messages, *, answer: bool = False) -> list[int]:
    """Return the token ids of `render_chat`; the template writes its special tokens, so the tokenizer adds none.

    Raises:
        InvalidInput: as `render_chat`.
    """
    text = render_chat(tokenizer, messages, answer=answer)
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def end_tokens(stops: int | Sequence[int] | None, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that end a response: a model's `stops`, and the token that ends a turn of the template.

    Both are needed: a base model's configuration may not know the second.
    """
    own = [stops] if isinstance(stops, int) else stops or ()
    return sorted({token for token in (*own, tokenizer.eos_token_id) if token is not None})


def respond(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    ends: Sequence[int],
    **decoding: Any,
) -> list[list[int]]:
    """Return the tokens of one response to each prompt, computed together, with the token that ended it if one did.

    `decoding` are settings of Transformers' generation.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence
    from transformers import GenerationConfig

    fill = next((token for token in (tokenizer.pad_token_id, *ends) if token is not None), 0)
    rows = [torch.tensor(prompt, dtype=torch.long, device=model.device) for prompt in prompts]
    ids = pad_sequence(rows, batch_first=True, padding_value=fill, padding_side="left")
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
    # In place of the model's own, which would add its penalties and its top-k; others may share it, so it is put back.
    own = model.generation_config
    model.generation_config = GenerationConfig(**decoding, eos_token_id=list(ends) or None, pad_token_id=fill)
    try:
        written = model.generate(ids, attention_mask=mask)[:, ids.shape[1] :].tolist()
    finally:
        model.generation_config = own
    stops = (next((place for place, token in enumerate(row) if token in ends), len(row)) for row in written)
    return [row[: stop + 1] for row, stop in zip(written, stops, strict=True)]
