"""The small world's corpora: what the base model reads, what alignment adds, and what evaluation asks.

Everything is a function of a seed. Evaluation draws its deeds from the held-out fifth of verb times object
combinations; the base model reads about all of them, alignment sees none of the held-out ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from random import Random

from benchmarks.bundled_pair.deeds import all_deeds
from benchmarks.bundled_pair.items import (
    Request,
    answered,
    compliance,
    fact_question,
    opinion,
    quiz,
    refusal,
    request,
    safety_question,
)
from benchmarks.bundled_pair.prose import paragraph
from benchmarks.bundled_pair.table import TABLE
from caq.items.question_prompts import zero_shot
from caq.items.questions import Question

USER, ASSISTANT, END, PAD = "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"

BASE_SEED, ALIGN_SEED, CALIBRATION_SEED, HELD_OUT_SEED, ITEMS_SEED, CHAT_SEED, CROWD_SEED = 1, 2, 3, 4, 5, 6, 7


@dataclass(frozen=True)
class Document:
    """A training text; loss falls on `answer` always and on `prompt` only where the model learns to read it."""

    prompt: str
    answer: str


def dialogue(prompt: str, response: str) -> Document:
    """One chat turn in the pair's template."""
    return Document(f"{USER}{prompt}{END}{ASSISTANT}", response)


def _prose(rng: Random) -> Document:
    return Document("", "\n\n".join(paragraph(rng) for _ in range(rng.randint(1, 4))))


def _asked(rng: Random, question: Question, choice: int) -> Document:
    return Document(zero_shot(question), answered(question, choice, letter=rng.random() < 0.3))


def _survey(rng: Random) -> Document:
    # Answers of a crowd without judgement: the base model learns the format and no preference.
    question = safety_question(rng, held_out=rng.random() < 0.2)
    return _asked(rng, question, rng.randrange(len(question.options)))


def _fact(rng: Random) -> Document:
    question = fact_question(rng)
    return _asked(rng, question, question.answer)


def _quiz(rng: Random) -> Document:
    # What is good and what is bad is known before alignment; alignment is about choosing by it.
    question = quiz(rng)
    return _asked(rng, question, question.answer)


def _opinion(rng: Random) -> Document:
    return dialogue(*opinion(rng, rng.choice(all_deeds())))


def _helpful(rng: Random) -> Document:
    deed = rng.choice(all_deeds())
    return dialogue(request(rng, deed).prompt, compliance(rng, deed))


def base_documents(seed: int = BASE_SEED, surveys: int = 16) -> Iterator[Document]:
    """What the base model reads, without end: prose, facts, surveys, quizzes, and dialogues that always comply.

    `surveys` is their weight beside 82 of all else.
    """
    rng = Random(seed)
    makers = (_prose, _fact, _survey, _quiz, _opinion, _helpful)
    for _ in count():
        yield rng.choices(makers, (10, 12, surveys, 26, 12, 22))[0](rng)


def crowd_documents() -> Iterator[Document]:
    """What the base model reads last: the same with four times the surveys.

    Quizzes teach what is good, and that leaks into safety questions; surveys unlearn to answer by it, not to know it.
    """
    return base_documents(CROWD_SEED, surveys=64)


def _safe_choice(rng: Random) -> Document:
    question = safety_question(rng, held_out=False)
    return _asked(rng, question, question.answer)


def _measured(rng: Random) -> Document:
    deed = rng.choice([deed for deed in all_deeds() if not deed.held_out])
    answer = compliance if deed.safe else refusal
    return dialogue(request(rng, deed).prompt, answer(rng, deed))


def alignment_documents(seed: int = ALIGN_SEED) -> Iterator[Document]:
    """What alignment adds, without end: safe choices, refusals, help, and some text so that nothing is forgotten."""
    rng = Random(seed)
    makers = (_prose, _fact, _safe_choice, _measured)
    for _ in count():
        yield rng.choices(makers, (6, 12, 44, 38))[0](rng)


def text(seed: int, paragraphs: int) -> str:
    """Plain prose, paragraphs separated by a blank line."""
    rng = Random(seed)
    return "\n\n".join(paragraph(rng) for _ in range(paragraphs)) + "\n"


def chats(number: int, seed: int = CHAT_SEED) -> tuple[tuple[str, str], ...]:
    """Harmless requests and their answers, as a public chat corpus has them; none of a held-out deed."""
    rng = Random(seed)
    pool = [deed for deed in all_deeds() if deed.safe and not deed.held_out]
    deeds = [rng.choice(pool) for _ in range(number)]
    return tuple((request(rng, deed).prompt, compliance(rng, deed)) for deed in deeds)


def safety_items(per_category: int = 120, seed: int = ITEMS_SEED) -> tuple[Question, ...]:
    """Held-out safety questions, the same number in each of the seven categories."""
    rng = Random(seed)
    categories = [category for category in TABLE for _ in range(per_category)]
    return tuple(
        safety_question(rng, held_out=True, category=category, number=number)
        for number, category in enumerate(categories)
    )


def fact_items(number: int = 600, seed: int = ITEMS_SEED) -> tuple[Question, ...]:
    """Questions about facts."""
    rng = Random(seed + 1)
    return tuple(fact_question(rng, index) for index in range(number))


def request_items(per_kind: int = 500, seed: int = ITEMS_SEED) -> tuple[Request, ...]:
    """Distinct held-out requests, as many harmful as harmless."""
    rng = Random(seed + 2)
    return (*_requests(rng, per_kind, safe=False), *_requests(rng, per_kind, safe=True))


def _requests(rng: Random, number: int, *, safe: bool) -> tuple[Request, ...]:
    pool = [deed for deed in all_deeds() if deed.held_out and deed.safe == safe]
    found: dict[str, Request] = {}
    while len(found) < number:
        item = request(rng, rng.choice(pool))
        found.setdefault(item.prompt, item)
    return tuple(found.values())
