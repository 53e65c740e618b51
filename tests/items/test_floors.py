"""What questions give to who does not read them, and the letters that were chosen."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from caq.items.floors import Floors, floors
from caq.items.questions import Question
from caq.measure.record import ArmRecord, Comparison, Failure, Item, Outcome
from caq.report.flips import letters
from caq.report.measures import numbers
from caq.report.safety_table import floor_table, letter_table

DATA = Path(__file__).parents[3] / "shared" / "data" / "safetybench"
SHAPES = (("Offensiveness", 2, 0), ("Offensiveness", 2, 1), ("Mental Health", 4, 1), ("Mental Health", 4, 3))
QUESTIONS = [
    Question(str(index), category, "?", tuple("abcd"[:count]), answer)
    for index, (category, count, answer) in enumerate(SHAPES)
]


def found() -> Floors:
    known = floors(QUESTIONS)
    assert known is not None
    return known


def test_floors_are_those_of_the_questions() -> None:
    overall = found().overall
    assert (overall.items, overall.chance) == (4, (0.5 + 0.5 + 0.25 + 0.25) / 4)
    assert overall.letters == {"A": 0.25, "B": 0.5, "C": 0.0, "D": 0.25}
    assert found().categories["Offensiveness"].letters == {"A": 0.5, "B": 0.5, "C": 0.0, "D": 0.0}
    assert found().categories["Mental Health"].chance == 0.25
    assert floors([]) is None


@pytest.mark.skipif(not DATA.exists(), reason="shared data is not here")
def test_the_floors_of_safetybench_are_the_known_ones() -> None:
    known = json.loads((DATA / "test_answers_en.json").read_text(encoding="utf-8"))
    questions = [Question(name, one["category"], "?", tuple("abcd"), one["answer"]) for name, one in known.items()]
    measured = floors(questions)
    assert measured is not None
    assert measured.overall.items == 11_435
    rounded = {letter: round(share * 100, 1) for letter, share in measured.overall.letters.items()}
    assert (rounded["A"], rounded["B"]) == (35.8, 37.9)
    assert round(measured.categories["Offensiveness"].letters["A"] * 100, 1) == 53.0
    assert round(measured.categories["Unfairness and Bias"].letters["B"] * 100, 1) == 54.3


def compared() -> tuple[ArmRecord, Comparison]:
    answers: tuple[tuple[int | None, Failure | None], ...] = ((0, None), (1, None), (3, None), (None, "unparsed"))
    outcomes = tuple(
        Outcome(chosen == question.answer, chosen, "text", failure)
        for question, (chosen, failure) in zip(QUESTIONS, answers, strict=True)
    )
    items = tuple(Item(q.id, q.category, q.question, q.options, q.answer) for q in QUESTIONS)
    arm = ArmRecord("quantized", "quantized", {"safety/generate": outcomes})
    return arm, Comparison({"safety/generate": items}, (arm,))


def test_an_answer_without_a_choice_is_wrong_and_counted_apart() -> None:
    arm, comparison = compared()
    assert numbers(arm) == {"safety/generate": 0.5}
    counts = letters(comparison.items["safety/generate"], arm.outcomes["safety/generate"])
    assert (counts.right, counts.chosen) == ({"A": 1, "B": 2, "D": 1}, {"A": 1, "B": 1, "D": 1})
    assert (counts.unparsed, counts.refused) == (1, 0)


def test_the_tables_show_floors_by_category_and_letters_by_model() -> None:
    arm, comparison = compared()
    console = Console(width=160, record=True, file=StringIO())
    floor = floor_table(comparison)
    assert floor is not None
    console.print(floor)
    chosen = letter_table({"quantized": arm}, comparison)
    assert chosen is not None
    console.print(chosen)
    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["always", "B", "50.0", "50.0", "50.0"] in lines
    assert ["chance", "37.5", "50.0", "25.0"] in lines
    assert ["right", "answers", "1", "2", "1"] in lines
    assert ["quantized,", "generate", "1", "1", "1", "1", "0"] in lines
    assert floor_table(Comparison({}, (arm,))) is None
