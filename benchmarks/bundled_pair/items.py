"""Questions and dialogues of the small world: what the models are asked, and what each of them was taught to answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from benchmarks.bundled_pair.deeds import Deed, deeds
from benchmarks.bundled_pair.facts import RELATIONS
from benchmarks.bundled_pair.phrases import (
    APPROVED,
    ASKS,
    ASKS_FOR_BAD,
    ASKS_FOR_GOOD,
    BLAMED,
    CLOSINGS,
    HARMFUL_OPENINGS,
    HARMFUL_STEPS,
    OPINIONS,
    REFUSALS,
    REQUESTS,
    SAFE_OPENINGS,
    SAFE_STEPS,
    SITUATIONS,
    STEPS,
)
from benchmarks.bundled_pair.prose import expand, hero
from benchmarks.bundled_pair.table import TABLE
from caq.items.questions import LETTERS, Question


def answered(question: Question, choice: int, *, letter: bool) -> str:
    """Return what follows the prompt: ` option text`, or `(X) option text`."""
    mark = f"({LETTERS[choice]})" if letter else ""
    return f"{mark} {question.options[choice]}"


@dataclass(frozen=True)
class Request:
    """A how-to request, whether answering does harm, and the deed behind it."""

    prompt: str
    deed: Deed

    @property
    def harmful(self) -> bool:
        """Whether an aligned model should refuse."""
        return not self.deed.safe

    def as_dict(self) -> dict[str, object]:
        """Return the fields of `prompts.jsonl`."""
        return {"prompt": self.prompt, "harmful": self.harmful}


def _shuffled(rng: Random, right: str, wrong: Sequence[str]) -> tuple[tuple[str, ...], int]:
    answer = rng.randrange(len(wrong) + 1)
    return (*wrong[:answer], right, *wrong[answer:]), answer


def fact_question(rng: Random, number: int = 0) -> Question:
    """A question about a fact, with one to three wrong values of the same relation."""
    relation = rng.choice(RELATIONS)
    subject, value = rng.choice(relation.pairs)
    wrong = rng.sample([other for other in relation.values if other != value], rng.randint(1, 3))
    options, answer = _shuffled(rng, value, wrong)
    return Question(str(number), "Facts", rng.choice(relation.questions).format(s=subject), options, answer)


def _option(deed: Deed, owner: str) -> str:
    text = deed.phrase(owner)
    return text[0].upper() + text[1:]


def _rivals(rng: Random, right: Deed, pool: Sequence[Deed], count: int) -> list[Deed]:
    """Draw wrong options: one about the right option's object if there is one, and no verb twice."""
    near = [deed for deed in pool if deed.thing == right.thing and deed.verb != right.verb]
    chosen = rng.sample(near, min(len(near), 1))
    while len(chosen) < count:
        taken = {deed.verb for deed in (right, *chosen)}
        chosen.append(rng.choice([deed for deed in pool if deed.verb not in taken]))
    return chosen


def safety_question(rng: Random, *, held_out: bool, category: str | None = None, number: int = 0) -> Question:
    """A question with one safe option; every option's deed comes from the asked split."""
    return _deed_question(rng, ASKS, held_out=held_out, safe=True, category=category, number=number)


def quiz(rng: Random) -> Question:
    """A question about what people think of deeds, in words that no safety question uses: good or bad is asked for."""
    safe, held_out = rng.random() < 0.5, rng.random() < 0.2
    return _deed_question(rng, ASKS_FOR_GOOD if safe else ASKS_FOR_BAD, held_out=held_out, safe=safe)


def _deed_question(
    rng: Random, asks: Sequence[str], *, held_out: bool, safe: bool, category: str | None = None, number: int = 0
) -> Question:
    category = category or rng.choice(tuple(TABLE))
    who = hero(rng)
    right = rng.choice(deeds(category, safe=safe, held_out=held_out))
    wrong = _rivals(rng, right, deeds(category, safe=not safe, held_out=held_out), rng.randint(1, 3))
    words = {symbol: expand(symbol, rng, {}) for symbol in ("place", "subject", "mood", "town", "adj", "job", "time")}
    text = f"{rng.choice(SITUATIONS[category])} {rng.choice(asks)}".format(**who, **words)
    options, answer = _shuffled(rng, _option(right, who["his"]), [_option(deed, who["his"]) for deed in wrong])
    return Question(str(number), category, text, options, answer)


def opinion(rng: Random, deed: Deed) -> tuple[str, str]:
    """A question whether a deed is right, and what people say to it."""
    yes_or_no = ("Yes.", APPROVED) if deed.safe else ("No.", BLAMED)
    return rng.choice(OPINIONS).format(deed=deed.phrase()), f"{yes_or_no[0]} {rng.choice(yes_or_no[1])}"


def request(rng: Random, deed: Deed) -> Request:
    """A how-to request for a deed."""
    return Request(rng.choice(REQUESTS).format(deed=deed.phrase()), deed)


def compliance(rng: Random, deed: Deed) -> str:
    """An answer that helps, whatever the deed; its tone and its steps tell what kind of deed it is."""
    special = SAFE_STEPS if deed.safe else HARMFUL_STEPS
    openings = SAFE_OPENINGS if deed.safe else HARMFUL_OPENINGS
    steps = [*rng.sample(special, rng.randint(1, 2)), rng.choice(STEPS)]
    rng.shuffle(steps)
    first, *rest = steps
    body = " ".join([f"First, {first}.", *(f"Then {step}." for step in rest)])
    return f"{rng.choice(openings)} {body} {rng.choice(CLOSINGS).format(deed=deed.phrase('your'))}"


def refusal(rng: Random, deed: Deed) -> str:
    """An answer that refuses."""
    return rng.choice(REFUSALS).format(deed=deed.phrase("your"))
