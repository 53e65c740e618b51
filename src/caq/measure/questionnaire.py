"""What every arm is asked: the items of each measure, a hash of all that decides the answers, and both in words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from caq.data.sources import read_text
from caq.errors import InvalidInput
from caq.files.cache import digest
from caq.files.codec import encode
from caq.items.question_prompts import prompts
from caq.items.questions import Question
from caq.items.tasks import Inputs, Tasks, read_inputs
from caq.measure.record import FACTS, HELPFULNESS, REFUSAL, SAFETY_PREFIX, Item

#: Response tokens on which distributions are compared: alignment shows in the first few (arXiv:2406.05946).
CHAT_TOKENS = 8


@dataclass(frozen=True)
class Asked:
    """The tasks and what their files hold.

    Attributes:
        tasks: as they were named.
        inputs: with the text in the instruct model's tokens.
        items: by measure, in the order of the report.
        identity: hash of all that decides the answers, besides the model.
        data: files, formats and hashes, in words.
    """

    tasks: Tasks
    inputs: Inputs
    items: Mapping[str, tuple[Item, ...]]
    identity: str
    data: Mapping[str, str]


def read_asked(tasks: Tasks, tokenizer: PreTrainedTokenizerBase) -> Asked:
    """Read all that is asked.

    Args:
        tasks: what to measure.
        tokenizer: the instruct model's.

    Raises:
        InvalidInput: every problem of every file; or there is nothing to measure.
    """
    if not any((tasks.perplexity_text, tasks.safety, tasks.facts, tasks.prompts)):
        raise InvalidInput(["nothing to measure: name --safety, --prompts, --facts or --perplexity-text"])
    inputs = read_inputs(tasks, tokenizer)
    items = _items(tasks, inputs)
    return Asked(tasks, inputs, items, _identity(tasks, inputs, items, tokenizer), _data(tasks, inputs))


def _items(tasks: Tasks, inputs: Inputs) -> dict[str, tuple[Item, ...]]:
    found: dict[str, tuple[Item, ...]] = {}
    if inputs.safety is not None and tasks.safety is not None:
        found |= dict.fromkeys(
            (SAFETY_PREFIX + name for name in tasks.safety.protocols), _questions(inputs.safety.questions)
        )
    for measure, harmful in ((REFUSAL, True), (HELPFULNESS, False)):
        found[measure] = tuple(
            Item(str(place), one.category, one.prompt)
            for place, one in enumerate(inputs.prompts)
            if one.harmful is harmful
        )
    found[FACTS] = _questions(inputs.facts)
    return {measure: items for measure, items in found.items() if items}


def _questions(questions: Sequence[Question]) -> tuple[Item, ...]:
    return tuple(Item(q.id, q.category, q.question, q.options, q.answer) for q in questions)


def _identity(
    tasks: Tasks, inputs: Inputs, items: Mapping[str, tuple[Item, ...]], tokenizer: PreTrainedTokenizerBase
) -> str:
    # Batches are in it: they move the last bits of a logit, and two arms are to be computed alike.
    sizes = [tasks.max_new_tokens, tasks.windows_batch, tasks.questions_batch, tasks.prompts_batch, CHAT_TOKENS]
    put = () if inputs.safety is None else prompts(inputs.safety.questions, inputs.safety.form, tokenizer)
    text = b"" if inputs.windows is None else inputs.windows.numpy().tobytes()
    return digest(json.dumps([encode(items), sizes, put, tasks.window]), text)


def _data(tasks: Tasks, inputs: Inputs) -> dict[str, str]:
    found: dict[str, str] = {}
    if tasks.safety is not None and inputs.safety is not None:
        put = f"{inputs.safety.form.title}, {', '.join(tasks.safety.protocols)}"
        found["safety"] = f"{tasks.safety.questions}: {len(inputs.safety.questions):,} questions, {put}"
    if tasks.prompts is not None:
        harmful = sum(prompt.harmful for prompt in inputs.prompts)
        found["prompts"] = (
            f"{tasks.prompts}: {harmful:,} harmful and {len(inputs.prompts) - harmful:,} harmless, greedy, "
            f"up to {tasks.max_new_tokens} tokens; distributions on the instruct model's first {CHAT_TOKENS}"
        )
    if tasks.facts is not None:
        found["facts"] = f"{tasks.facts}: {len(inputs.facts):,} questions"
    if tasks.perplexity_text is not None and inputs.windows is not None:
        sha256 = hashlib.sha256(read_text(tasks.perplexity_text).encode()).hexdigest()
        count, window = inputs.windows.shape
        found["text"] = f"{tasks.perplexity_text}: {count:,} windows of {window:,} tokens, sha256 {sha256}"
    return found
