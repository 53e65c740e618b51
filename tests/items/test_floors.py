"""What questions give to who does not read them, and the letters that were chosen."""

from __future__ import annotations

import json
from dataclasses import asdict
from io import StringIO
from pathlib import Path

import pytest
from caq.measure.results import Answer, Failure, LetterCounts, Results
from rich.console import Console

from caq.items.floors import Floors, floors
from caq.items.questions import Question
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


def results() -> Results:
    outcomes: tuple[tuple[int | None, Failure | None], ...] = ((0, None), (1, None), (3, None), (None, "unparsed"))
    answers = tuple(
        Answer(one.id, one.category, one.answer, chosen, failure, "text")
        for one, (chosen, failure) in zip(QUESTIONS, outcomes, strict=True)
    )
    return Results(16, safety={"generate": answers}, safety_format="English", floors=found())


def test_an_answer_without_a_choice_is_wrong_and_counted_apart() -> None:
    assert results().summary() == {"safety/generate": 0.5}
    counts = LetterCounts({"A": 1, "B": 2, "D": 1}, {"A": 1, "B": 1, "D": 1}, 1, 0)
    assert results().letters("generate") == counts


def test_floors_and_letters_are_in_the_json_and_come_back() -> None:
    data = json.loads(json.dumps(results().as_dict()))
    assert data["letters"] == {"generate": asdict(results().letters("generate"))}
    assert data["floors"]["overall"]["chance"] == 0.375
    assert Results.from_dict(data) == results()


def test_the_tables_show_floors_by_category_and_letters_by_model() -> None:
    console = Console(width=160, record=True, file=StringIO())
    console.print(floor_table(results()))
    console.print(letter_table({"quantized": results()}))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["always", "B", "50.0", "50.0", "50.0"] in lines
    assert ["chance", "37.5", "50.0", "25.0"] in lines
    assert ["right", "answers", "1", "2", "1"] in lines
    assert ["quantized,", "generate", "1", "1", "1", "1", "0"] in lines
