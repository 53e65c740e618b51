"""Texts as tokens, a block at a time: a tokenizer holds some hundred bytes a token, and what is kept here four.

What a tokenizer puts at the end of every text, as those with `add_eos_token` do, is taken off again: it is no part of
an option, and nothing follows a prompt that has ended. What it puts at the beginning stays.
"""

from __future__ import annotations

import copy
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from caq.errors import Unsupported

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Some thousand tokens each, enough for the tokenizer's threads.
BLOCK_TEXTS = 64
_PROBE = "a"


def encode(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], add_special_tokens: bool) -> Iterator[array[int]]:
    """Yield the token ids of every text, in order; no more than `BLOCK_TEXTS` texts are taken at once."""
    last = -len(_added(tokenizer)[1]) if add_special_tokens else 0
    left = iter(texts)
    while block := list(islice(left, BLOCK_TEXTS)):
        encoded = tokenizer(block, add_special_tokens=add_special_tokens, return_attention_mask=False, verbose=False)
        yield from (array("i", ids[: last or None]) for ids in encoded["input_ids"])


def without_ends(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a copy of a tokenizer that itself puts nothing at the end of a text, for code that is not ours.

    Raises:
        Unsupported: it puts something there in a way that cannot be turned off.
    """
    from tokenizers.processors import TemplateProcessing

    own = copy.deepcopy(tokenizer)
    before, after = _added(own)
    if not after:
        return own
    if getattr(own, "backend_tokenizer", None) is None:
        own.add_eos_token = False
    else:
        names = [str(own.convert_ids_to_tokens(token)) for token in before]
        special = [*zip(names, before, strict=True)]
        own.backend_tokenizer.post_processor = TemplateProcessing(single=[*names, "$A"], special_tokens=special)
    if _added(own)[1]:
        raise Unsupported(
            f"the tokenizer ends every text with {after}; set add_eos_token to false in its configuration"
        )
    return own


def _added(tokenizer: PreTrainedTokenizerBase) -> tuple[Sequence[int], Sequence[int]]:
    """Return the ids that a tokenizer puts before and behind every text."""
    plain = list(tokenizer(_PROBE, add_special_tokens=False)["input_ids"])
    whole = list(tokenizer(_PROBE)["input_ids"])
    starts = range(len(whole) - len(plain) + 1)
    start = next((index for index in starts if plain and whole[index : index + len(plain)] == plain), None)
    return ([], []) if start is None else (whole[:start], whole[start + len(plain) :])
