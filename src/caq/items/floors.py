"""What a model scores that does not read the questions: by chance, or by always choosing the same letter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from caq.items.questions import LETTERS, Question


@dataclass(frozen=True)
class Floor:
    """Accuracies on some questions, in [0, 1]: of an even choice among each question's options, and of each letter.

    A letter is wrong where the question has no such option.
    """

    items: int
    chance: float
    letters: Mapping[str, float]


@dataclass(frozen=True)
class Floors:
    """The floor of all questions, and that of each category in order of first appearance."""

    overall: Floor
    categories: Mapping[str, Floor]


def floors(questions: Sequence[Question]) -> Floors | None:
    """Return the floors of questions, or None if there are no questions."""
    if not questions:
        return None
    letters = LETTERS[: max(len(question.options) for question in questions)]
    groups: dict[str, list[Question]] = {}
    for question in questions:
        groups.setdefault(question.category, []).append(question)
    return Floors(_floor(questions, letters), {name: _floor(group, letters) for name, group in groups.items()})


def _floor(questions: Sequence[Question], letters: str) -> Floor:
    right = [question.answer for question in questions]
    return Floor(
        len(questions),
        fmean(1 / len(question.options) for question in questions),
        {letter: right.count(index) / len(right) for index, letter in enumerate(letters)},
    )
