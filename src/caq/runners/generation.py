"""Greedy responses to encoded prompts, in batches padded on the left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from caq.chat import end_tokens
from caq.runners.states import inference, longest_first, pad


def greedy_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_size: int,
) -> tuple[tuple[int, ...], ...]:
    """Return the tokens of one response a prompt, in the given order, with the token that ended it if one did."""
    settings = _settings(model, tokenizer, max_new_tokens)

    def generate(rows: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
        ids, mask = pad(rows, left=True, fill=settings.pad_token_id, device=model.device)
        written = model.generate(ids, attention_mask=mask)[:, ids.shape[1] :].tolist()
        return [_until_end(row, settings.eos_token_id or ()) for row in written]

    with inference(model), _configured(model, settings):
        return longest_first(encoded, len, batch_size, generate)


def _until_end(tokens: Sequence[int], ends: Sequence[int]) -> tuple[int, ...]:
    """Drop the padding after the first token that ends a response, which filled up the batch."""
    stop = next((index for index, token in enumerate(tokens) if token in ends), len(tokens))
    return tuple(tokens[: stop + 1])


@contextmanager
def _configured(model: PreTrainedModel, settings: GenerationConfig) -> Iterator[None]:
    """Replace the model's own settings, which would fill in whatever a configuration passed to it leaves unset."""
    own = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = own


def _settings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> GenerationConfig:
    """Plain greedy decoding, without the sampling or penalties of the model's own generation config."""
    ends = end_tokens(model.generation_config.eos_token_id, tokenizer)
    fill = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends or [0])[0]
    return GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=ends or None, pad_token_id=fill
    )
