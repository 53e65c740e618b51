"""The calibration data of a run: blocks of a text, or of the aligned model's own responses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from caq.chat import manner_of
from caq.checkpoint.inspect import Checkpoint
from caq.data.blocks import Calibration, token_blocks
from caq.data.responses import responder, response_blocks
from caq.data.sources import holds_documents
from caq.errors import InvalidInput, attempt
from caq.families import Bound
from caq.loading import load_tokenizer
from caq.recipe import Recipe
from caq.recipe.sections import SELF

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def calibrate(
    aligned: Checkpoint, identity: str, recipe: Recipe, root: Path, load: Callable[[], Bound], *, quiet: bool = False
) -> Calibration:
    """Return the blocks of tokens that a recipe asks for.

    Args:
        aligned: the aligned model's checkpoint.
        identity: hash of its weights and of the dtype that they are computed in.
        recipe: what is wanted, and how much of it learning keeps for validation.
        root: of the cache.
        load: loads the aligned model; called for `self` alone, and what it returns is released before this returns.
        quiet: show no progress.

    Raises:
        InvalidInput: the text cannot be downloaded, read or tokenized, is too short, or leaves nothing to learn from.
    """
    tokenizer = load_tokenizer(aligned.path)
    if recipe.data.text == SELF:
        model = responder(aligned, identity, tokenizer, load)
        data = response_blocks(model, recipe.data, recipe.seed, root / "responses", quiet=quiet)
    else:
        data = token_blocks(recipe.data, tokenizer, recipe.seed, cache_dir=root)
    data = replace(data, origin={**data.origin, **_chats(recipe.data.text, tokenizer)})
    if len(data.ids) <= recipe.validation_samples:
        kept = f"has {len(data.ids)} blocks and learning keeps {recipe.validation_samples} of them for validation"
        keepers = [learner.name for learner in recipe.learn if learner.validation_samples >= len(data.ids)]
        lower = " and ".join(f"learn.{name}.validation_samples" for name in keepers)
        raise InvalidInput(f"{recipe.data.text}: {kept}; add text, or lower {lower}")
    rows, largest = aligned.config.get("vocab_size"), int(data.ids.max())
    if isinstance(rows, int) and largest >= rows:
        # Some tokenizer classes know a token that no file of theirs names, where a text spells it.
        spelled = f"{tokenizer.convert_ids_to_tokens(largest)!r} is {largest:,}, and the model has {rows:,} rows"
        raise InvalidInput(f"{recipe.data.text}: the token {spelled}; take it out of the text")
    return data


def _chats(text: str, tokenizer: PreTrainedTokenizerBase) -> Mapping[str, str]:
    """Return, for the record, how chats are put to the model where the data may hold some; nothing of plain chats."""
    if text != SELF and not holds_documents(text):
        return {}
    # Without a usable template there are no chats in the data.
    found = attempt([], lambda: manner_of(tokenizer))
    return {"chats": found.words} if found and found.words else {}
