"""Texts as tokens, a block at a time: a tokenizer holds some hundred bytes a token, and what is kept here four."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from itertools import islice

from transformers import PreTrainedTokenizerBase

# Some thousand tokens each, enough for the tokenizer's threads.
BLOCK_TEXTS = 64


def encode(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], add_special_tokens: bool) -> Iterator[array[int]]:
    """Yield the token ids of every text, in order; no more than `BLOCK_TEXTS` texts are taken at once."""
    left = iter(texts)
    while block := list(islice(left, BLOCK_TEXTS)):
        encoded = tokenizer(block, add_special_tokens=add_special_tokens, return_attention_mask=False, verbose=False)
        yield from (array("i", ids) for ids in encoded["input_ids"])
