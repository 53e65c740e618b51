"""What every arm is asked: the items of each measure, a hash of all that decides the answers, and both in words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from caq.chat import NO_TEMPLATE, find_template, render_prompt
from caq.data.sources import read_text
from caq.errors import attempt, refuse
from caq.files.cache import digest
from caq.files.codec import encode
from caq.items.question_prompts import prompts
from caq.items.questions import Question, read_questions
from caq.items.requests import Prompt, read_prompts
from caq.items.safety import SafetyInputs, read_safety
from caq.items.tasks import WINDOW, Tasks
from caq.measure.distances import windows_of
from caq.measure.record import ENDED_PREFIX, FACTS, HELPFULNESS, LANGUAGE, REFUSAL, SAFETY_PREFIX, Item
from caq.runners.base import Passage
from caq.tokens import encode as tokens

#: Response tokens on which distributions are compared: alignment shows in the first few (arXiv:2406.05946).
CHAT_TOKENS = 8

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class Questionnaire:
    """The tasks and what their files hold.

    Attributes:
        tasks: as they were named.
        text: for perplexity; empty if none is asked for.
        windows: of the text, in the tokens of the first model that is asked.
        safety: the safety questions and how they are asked; None if there are none.
        facts, prompts: questions and requests.
        items: by measure, in the order of the report.
        identity: hash of all that decides the answers, besides the model.
        data: files, formats and hashes, in words.
    """

    tasks: Tasks
    text: str
    windows: tuple[Passage, ...]
    safety: SafetyInputs | None
    facts: tuple[Question, ...]
    prompts: tuple[Prompt, ...]
    items: Mapping[str, tuple[Item, ...]]
    identity: str
    data: Mapping[str, str]

    @property
    def window(self) -> int:
        """Tokens per window of the text."""
        return self.tasks.window or WINDOW

    @property
    def chats(self) -> bool:
        """Whether anything is asked through a chat template."""
        return bool(self.prompts) or (self.safety is not None and self.safety.form.chat)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was inferred from the files rather than given, in sentences."""
        return () if self.safety is None else self.safety.notes

    def texts(self, tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], list[str]]:
        """Return every prompt of a model: chats, which hold their special tokens, and plain prompts."""
        options = self.tasks.chat_options
        chats = [render_prompt(tokenizer, prompt.prompt, options) for prompt in self.prompts]
        if self.safety is None:
            return chats, []
        asked = list(prompts(self.safety.questions, self.safety.form, tokenizer))
        return ([*chats, *asked], []) if self.safety.form.chat else (chats, asked)


def read_questionnaire(tasks: Tasks, tokenizer: PreTrainedTokenizerBase) -> Questionnaire:
    """Read all that is asked, so that a mistake shows before a model is loaded.

    The tokenizer is the aligned model's, or that of the first model that is asked.

    Raises:
        InvalidInput: every problem of every file; or there are prompts and no chat template to ask them through.
    """
    problems: list[str] = []

    def read(source: S | None, reader: Callable[[S], T]) -> T | None:
        return None if source is None else attempt(problems, partial(reader, source))

    text = read(tasks.perplexity_text, read_text) or ""
    encoded = next(tokens(tokenizer, [text], add_special_tokens=True)) if text else None
    windows = read(encoded, lambda ids: windows_of(ids, tasks.window or WINDOW)) or ()
    safety = read(tasks.safety, lambda task: read_safety(task, tokenizer, tasks.chat_options))
    facts = read(tasks.facts, read_questions) or ()
    requests = read(tasks.prompts, read_prompts) or ()
    if tasks.prompts is not None and attempt(problems, lambda: find_template(tokenizer) is None):
        problems.append(NO_TEMPLATE)
    refuse(problems)
    items = _items(tasks, safety, facts, requests)
    # A chat and a plain prompt of the same words still differ in the tokenizer's special tokens.
    put = () if safety is None else (safety.form.chat, *prompts(safety.questions, safety.form, tokenizer))
    read_ids = [passage.ids for passage in windows]
    # The text, too: a model of other tokens reads what the windows dropped.
    ways = [tasks.max_new_tokens, CHAT_TOKENS, tasks.chat_options, tasks.window]
    identity = digest(json.dumps([encode(items), *ways, put, read_ids, text]))
    asked = Questionnaire(tasks, text, windows, safety, facts, requests, items, identity, data={})
    return replace(asked, data=_data(asked))


def _items(
    tasks: Tasks, safety: SafetyInputs | None, facts: Sequence[Question], requests: Sequence[Prompt]
) -> dict[str, tuple[Item, ...]]:
    items: dict[str, tuple[Item, ...]] = {}
    if safety is not None and tasks.safety is not None:
        asked = _questions(safety.questions)
        items |= {SAFETY_PREFIX + name: asked for name in tasks.safety.protocols}
    asked_of = {
        REFUSAL: (True,),
        HELPFULNESS: (False,),
        f"{ENDED_PREFIX}{tasks.max_new_tokens}": (False,),
        LANGUAGE: (True, False),
    }
    for measure, kinds in asked_of.items():
        items[measure] = tuple(
            Item(str(index), request.category, request.prompt)
            for index, request in enumerate(requests)
            if request.harmful in kinds
        )
    items[FACTS] = _questions(facts)
    return {measure: asked for measure, asked in items.items() if asked}


def _questions(questions: Sequence[Question]) -> tuple[Item, ...]:
    return tuple(Item(q.id, q.category, q.question, q.options, q.answer) for q in questions)


def _data(asked: Questionnaire) -> dict[str, str]:
    data: dict[str, str] = {}
    tasks, safety = asked.tasks, asked.safety
    if tasks.safety is not None and safety is not None:
        put = f"{safety.form.title}, {', '.join(tasks.safety.protocols)}"
        data["safety"] = f"{tasks.safety.questions}: {len(safety.questions):,} questions, {put}"
    if tasks.prompts is not None:
        harmful = sum(prompt.harmful for prompt in asked.prompts)
        data["prompts"] = (
            f"{tasks.prompts}: {harmful:,} harmful and {len(asked.prompts) - harmful:,} harmless, greedy, "
            f"up to {tasks.max_new_tokens} tokens; distributions on the aligned model's first {CHAT_TOKENS}"
        )
    if tasks.chat_options:
        given = (f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in tasks.chat_options.items())
        data["chat options"] = ", ".join(given)
    if tasks.facts is not None:
        data["facts"] = f"{tasks.facts}: {len(asked.facts):,} questions"
    if asked.windows:
        sha256 = hashlib.sha256(asked.text.encode()).hexdigest()
        size = f"{len(asked.windows):,} windows of {asked.window:,} tokens"
        data["text"] = f"{tasks.perplexity_text}: {size}, sha256 {sha256}"
    return data
