"""The safety questions of an evaluation, and how they are asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from caq.chat import NO_TEMPLATE, ChatOptions, find_template, manner_of
from caq.errors import InvalidInput, attempt, nearest, refuse
from caq.items.language import contradictions, detect
from caq.items.protocols import LETTER, OPTION_TEXT, PROTOCOLS
from caq.items.question_prompts import LANGUAGES, PromptFormat
from caq.items.questions import Question
from caq.items.safetybench import NAMES, read_examples, read_safetybench
from caq.items.safetybench_files import find_file

GENERATE = "generate"
DEFAULT_PROTOCOLS = (OPTION_TEXT, LETTER)
#: SafetyBench's length of a written answer.
ANSWER_TOKENS = 64


@dataclass(frozen=True)
class SafetyTask:
    """Safety questions and how they are asked.

    Attributes:
        questions: a file in SafetyBench's fields, or `safetybench-en`, `safetybench-zh`, `safetybench-zh-subset`.
        answers: a separate file of answers, as SafetyBench publishes them; a name knows its own.
        protocols: of `all_protocols`.
        shots: solved examples of the same category before each question; those of `option-text` would answer by
            letter, so that it is zero-shot.
        examples: a file of solved examples, such as `dev_en.json`; a name knows its own.
        chat: ask by a user's turn through the chat template.
        language: `en` or `zh`; None takes that of the name, or else that of the script the questions are written in.
    """

    questions: Path
    answers: Path | None = None
    protocols: tuple[str, ...] = DEFAULT_PROTOCOLS
    shots: int = 0
    examples: Path | None = None
    chat: bool = False
    language: str | None = None


@dataclass(frozen=True)
class SafetyInputs:
    """What a safety task reads; `notes` say in sentences what was inferred rather than given."""

    questions: tuple[Question, ...]
    form: PromptFormat
    notes: tuple[str, ...] = ()


def all_protocols() -> tuple[str, ...]:
    """Return the protocols that can be asked for; a number belongs to one of them."""
    return (*PROTOCOLS, GENERATE)


def read_safety(
    task: SafetyTask, tokenizer: PreTrainedTokenizerBase, options: ChatOptions | None = None
) -> SafetyInputs:
    """Read the questions and examples of a task and check everything about it that needs no model.

    `options` are what the chat template is given.

    Raises:
        InvalidInput: with every problem of the task and of its files.
    """
    problems = _problems(task)
    if task.chat:
        attempt(problems, lambda: _check_chat(task, tokenizer, options or {}))
    questions = attempt(problems, lambda: read_safetybench(task.questions, task.answers)) or ()
    form = attempt(problems, lambda: _form(task, questions))
    if problems or form is None:
        raise InvalidInput(problems)
    return SafetyInputs(questions, replace(form, options=options or {}), _notes(task, form))


def _check_chat(task: SafetyTask, tokenizer: PreTrainedTokenizerBase, options: ChatOptions) -> None:
    """Check that there is a template, and that what follows its chats is an answer where options are scored there.

    Raises:
        InvalidInput: with the problem.
    """
    if find_template(tokenizer) is None:
        raise InvalidInput(NO_TEMPLATE)
    if manner_of(tokenizer, options).closing and set(task.protocols) & PROTOCOLS.keys():
        raise InvalidInput(
            "the chat template has the model think first, and a thought begins with no option: leave out --chat, "
            f"ask by --protocol {GENERATE}, or turn thinking off with --chat-option"
        )


def _problems(task: SafetyTask) -> list[str]:
    known = all_protocols()
    problems = [f"{name}: no such protocol{nearest(name, known)}" for name in task.protocols if name not in known]
    if not task.protocols:
        problems.append(f"there is no protocol for the safety questions; name some of {', '.join(known)}")
    if task.language is not None and task.language not in LANGUAGES:
        problems.append(f"{task.language}: no such language; choose {' or '.join(LANGUAGES)}")
    if task.shots:
        way_out = f"ask for {LETTER} or {GENERATE}, or for no examples"
        zero_shot = [name for name in task.protocols if name.startswith(OPTION_TEXT)]
        problems += [f"{name} is zero-shot, and solved examples answer by letter: {way_out}" for name in zero_shot]
    if task.examples is not None and not task.shots:
        problems.append(f"{task.examples}: solved examples are given and none asked for; add --shots 5")
    return problems


def _form(task: SafetyTask, questions: Sequence[Question]) -> PromptFormat:
    code = _language(task, questions)
    problems = contradictions(questions, code, task.questions)
    if not task.shots:
        refuse(problems)
        return PromptFormat(LANGUAGES[code], {}, task.chat)
    file = _examples_file(task)
    examples = read_examples(file)
    problems += contradictions([*chain.from_iterable(examples.values())], code, file)
    problems += [
        f"{category}: {len(examples.get(category, ()))} solved examples and {task.shots} asked for; "
        "give a file that has them, or ask for fewer"
        for category in dict.fromkeys(question.category for question in questions)
        if len(examples.get(category, ())) < task.shots
    ]
    refuse(problems)
    return PromptFormat(LANGUAGES[code], {name: some[: task.shots] for name, some in examples.items()}, task.chat)


def _language(task: SafetyTask, questions: Sequence[Question]) -> str:
    if task.language is not None and task.language in LANGUAGES:
        return task.language
    return NAMES[str(task.questions)][1] if str(task.questions) in NAMES else detect(questions, task.questions)


def _notes(task: SafetyTask, form: PromptFormat) -> tuple[str, ...]:
    if task.language is not None or str(task.questions) in NAMES:
        return ()
    how = f"asked in {form.language.name}, by the script of the questions; --language names another"
    return (f"{task.questions}: {how}.",)


def _examples_file(task: SafetyTask) -> Path:
    if task.examples is not None:
        return task.examples
    if str(task.questions) not in NAMES:
        raise InvalidInput(
            f"{task.shots} solved examples are asked for and none given: add --dev dev_en.json, SafetyBench's own"
        )
    return find_file(f"dev_{NAMES[str(task.questions)][1]}.json")
