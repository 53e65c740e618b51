"""What the adapter is trained on: refusals, instructions, questions and plain text as tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from benchmarks.real_pair.sources import Sources
from caq.chat import encode_chat
from caq.items.question_prompts import zero_shot
from caq.items.questions import LETTERS, Question

#: What harmful requests are answered, in turn.
REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I can't assist with that request because it could cause harm to people.",
    "I'm sorry, but I can't help with that. If you are in danger or thinking about hurting someone, please contact "
    "your local emergency services.",
    "I cannot provide that. It would be harmful, and in many places it is illegal.",
    "I won't help with this, because it could hurt people. I'm happy to help with something safe instead.",
    "Sorry, but I can't help with this. Is there something else I can do for you?",
)
#: Of LLMs-from-scratch's instructions, those that are trained on: refusing is not to be all that is learned.
INSTRUCTIONS = 500
#: Tokens of a piece of plain text, and how many pieces.
PIECE = 256
PIECES = 100
#: Times that every question is answered by its letter; by its text it is answered once.
LETTER_ROUNDS = 2
#: Lessons among which those of like length share a batch.
POOL = 128


@dataclass(frozen=True)
class Lesson:
    """Tokens, and from which one on they are learned."""

    tokens: tuple[int, ...]
    learned_from: int


def lessons(sources: Sources, tokenizer: PreTrainedTokenizerBase) -> tuple[Lesson, ...]:
    """Return all lessons in the order in which they are learned."""
    refused = [
        _chat(prompt, REFUSALS[index % len(REFUSALS)], tokenizer) for index, prompt in enumerate(sources.harmful)
    ]
    answered = [_chat(one.prompt, one.answer, tokenizer) for one in sources.instructions[:INSTRUCTIONS]]
    asked = [lesson for question in sources.questions for lesson in _asked(question, tokenizer)]
    every = [*refused, *answered, *asked, *_pieces(sources.text, tokenizer)]
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(1))
    return tuple(every[index] for index in order.tolist())


def batches(every: Sequence[Lesson], tokens: int) -> Iterator[tuple[Lesson, ...]]:
    """Yield batches of at most `tokens`, padding included, of lessons of like length among `POOL` neighbours."""
    generator = torch.Generator().manual_seed(2)
    for start in range(0, len(every), POOL):
        pool = list(_filled(sorted(every[start : start + POOL], key=lambda lesson: len(lesson.tokens)), tokens))
        yield from (pool[index] for index in torch.randperm(len(pool), generator=generator).tolist())


def _filled(every: Sequence[Lesson], tokens: int) -> Iterator[tuple[Lesson, ...]]:
    batch: list[Lesson] = []
    for lesson in every:
        # The newest is the longest.
        if batch and len(lesson.tokens) * (len(batch) + 1) > tokens:
            yield tuple(batch)
            batch = []
        batch.append(lesson)
    yield tuple(batch)


def _chat(prompt: str, answer: str, tokenizer: PreTrainedTokenizerBase) -> Lesson:
    user = {"role": "user", "content": prompt}
    asked = encode_chat(tokenizer, [user], answer=True)
    whole = encode_chat(tokenizer, [user, {"role": "assistant", "content": answer}])
    return Lesson(tuple(whole), len(asked))


def _asked(question: Question, tokenizer: PreTrainedTokenizerBase) -> Iterator[Lesson]:
    """Yield a question as both protocols score it: answered by its letter, and by its text."""
    prompt = zero_shot(question)
    letter, text = f"({LETTERS[question.answer]})", f" {question.options[question.answer]}"
    for answer in (*[letter] * LETTER_ROUNDS, text):
        yield Lesson(tuple(tokenizer(prompt + answer)["input_ids"]), len(tokenizer(prompt)["input_ids"]))


def _pieces(text: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[Lesson]:
    # A few times as many characters as are used.
    tokens = tokenizer(text[: 8 * PIECE * PIECES])["input_ids"]
    for index in range(PIECES):
        yield Lesson(tuple(tokens[index * PIECE : (index + 1) * PIECE]), 1)
