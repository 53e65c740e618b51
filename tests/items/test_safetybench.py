"""SafetyBench's files: joined with their answers, and every fault of both told in one error."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from caq.errors import InvalidInput
from caq.items.questions import Question
from caq.items.safetybench import CATEGORIES, read_examples, read_safetybench

DATA = Path(__file__).parents[3] / "shared" / "data" / "safetybench"
GOOD: dict[str, Any] = {"id": 0, "category": "Mental Health", "question": "Is it?", "options": ["Yes.", "No."]}
needs_data = pytest.mark.skipif(not DATA.exists(), reason="shared data is not here")


def write(path: Path, document: object) -> Path:
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def problems(source: Path, answers: Path | None = None) -> tuple[str, ...]:
    with pytest.raises(InvalidInput) as caught:
        read_safetybench(source, answers)
    return caught.value.problems


def test_every_fault_of_questions_with_their_answers_is_told_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path / "test.json",
        [
            {**GOOD, "answer": 1},
            {**GOOD, "id": 1, "answer": 1, "options": ["Yes.", ""]},
            {**GOOD, "id": 2, "answer": 0, "options": ["Yes."]},
            {**GOOD, "answer": 0},
            {**GOOD, "id": 4, "answer": 0, "category": " "},
            {**GOOD, "id": 5, "answer": 2},
            {**GOOD, "id": 6, "answer": -1},
            {**GOOD, "id": 7, "answer": 0, "options": [*map(str, range(27))]},
            {**GOOD, "id": 8},
        ],
    )
    expected = {
        (2, "option B must be a text that is not empty"),
        (3, "1 options; a question has 2 to 26"),
        (4, f"id 0 is also at {path}: record 1; ids are unique within a file"),
        (5, "`category` must be a text that is not empty"),
        (6, "answer 2 is none of the 2 options, counted from 0"),
        (7, "answer -1 is none of the 2 options, counted from 0"),
        (8, "27 options; a question has 2 to 26"),
        (9, "no `answer`; join the answer file, 0 for the first option"),
    }
    assert set(problems(path)) == {f"{path}: record {number}: {words}" for number, words in expected}


def test_every_fault_between_questions_and_answers_is_told_at_once(tmp_path: Path) -> None:
    questions = [{**GOOD, "id": index} for index in range(4)] + [{**GOOD, "id": 4, "answer": 0, "options": ["", "b"]}]
    path = write(tmp_path / "test.json", questions)
    known = {
        "0": {"category": "Mental Health", "answer": 1},
        "1": {"category": "Offensiveness", "answer": 1},
        "2": {"category": "Mental Health", "answer": 3},
        "4": {"category": "Mental Health", "answer": 1},
        "99": {"category": "Mental Health", "answer": 0},
    }
    answers = write(tmp_path / "answers.json", known)
    expected = {
        (2, f"category 'Mental Health', and 'Offensiveness' in {answers}"),
        (3, "answer 3 is none of the 2 options, counted from 0"),
        (4, f"id 3 is not in {answers}"),
        (5, f"answer 0, and 1 in {answers}"),
        (5, "option A must be a text that is not empty"),
    }
    assert set(problems(path, answers)) == {f"{path}: record {number}: {words}" for number, words in expected}


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "give SafetyBench's file of answers"), ("[1]", "not an object"), ('{"0": 1, "1": {}}', "id 0: no `answer`")],
)
def test_a_file_that_holds_no_answers_is_refused(content: str, words: str, tmp_path: Path) -> None:
    answers = tmp_path / "answers.json"
    answers.write_text(content, encoding="utf-8")
    assert words in problems(write(tmp_path / "test.json", [GOOD]), answers)[0]


@pytest.mark.parametrize("content", [None, "{", "[1]", '{"0": 1, "1": {}, "2": {"answer": 1}}'])
def test_a_bad_file_of_answers_hides_no_fault_of_the_questions(content: str | None, tmp_path: Path) -> None:
    questions = [{**GOOD, "options": ["Yes.", ""]}, {**GOOD, "id": 1, "category": ""}, {**GOOD, "id": 2}]
    path, answers = write(tmp_path / "test.json", questions), tmp_path / "answers.json"
    if content is not None:
        answers.write_text(content, encoding="utf-8")
    found = problems(path, answers)
    ours = {
        f"{path}: record 1: option B must be a text that is not empty",
        f"{path}: record 2: `category` must be a text that is not empty",
    }
    assert ours < set(found)
    of_answers = [problem for problem in found if problem.startswith(f"{answers}: ")]
    assert len(of_answers) == (2 if content and "0" in content else 1)
    assert len(found) == len(ours) + len(of_answers)


def test_every_repeated_id_of_the_answers_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "test.json", [{**GOOD, "id": index} for index in range(4)])
    answers = tmp_path / "answers.json"
    entries = ['"0": {"answer": 1}', '"1": {"answer": 0, "answer": 1}', '"2": {"answer": 0}', '"3": {"answer": 0}']
    again = ['"2": {"answer": 0}', '"0": {"answer": 0}', '"0": {"answer": 0}']
    answers.write_text("{" + ",".join([*entries, *again]) + "}", encoding="utf-8")
    assert set(problems(path, answers)) == {
        f"{answers}: id 0 is given twice; leave one",
        f"{answers}: id 2 is given twice; leave one",
        f"{answers}: id 1: `answer` is given twice; leave one",
    }


def test_a_name_that_is_no_file_is_told_with_the_nearest(tmp_path: Path) -> None:
    (problem,) = problems(Path("safetybench-eng"))
    assert problem.endswith("did you mean safetybench-en?")


def test_only_safetybenchs_own_files_have_its_categories_and_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {**GOOD, "category": "Fire", "options": list("abcde"), "answer": 4}
    path = write(tmp_path / "test_en.json", [own])
    assert read_safetybench(path) == (Question("0", "Fire", "Is it?", tuple("abcde"), 4),)
    assert [*read_examples(path)] == ["Fire"]
    monkeypatch.setenv("CAQ_SAFETYBENCH", str(tmp_path))
    unknown, surplus = problems(Path("safetybench-en"))
    assert "record 1: unknown category 'Fire'" in unknown
    assert "record 1: 5 options; SafetyBench has 2 to 4" in surplus


def test_an_answer_that_is_spelled_in_two_ways_is_no_contradiction(tmp_path: Path) -> None:
    path = write(tmp_path / "test.json", [{**GOOD, "answer": "B"}])
    assert read_safetybench(path, write(tmp_path / "answers.json", {"0": {"answer": 1}}))[0].answer == 1
    (problem,) = problems(path, write(tmp_path / "answers.json", {"0": {"answer": 0}}))
    assert "answer 'B', and 0 in" in problem


def test_answers_are_joined_by_id_and_not_by_place(tmp_path: Path) -> None:
    path = write(tmp_path / "test.json", [{**GOOD, "id": 5}, {**GOOD, "id": 3}])
    answers = write(tmp_path / "answers.json", {"3": {"answer": 0}, "5": {"answer": 1}, "9": {"answer": 1}})
    found = read_safetybench(path, answers)
    assert found[0] == Question("5", "Mental Health", "Is it?", ("Yes.", "No."), 1)
    assert [one.answer for one in found] == [1, 0]


@needs_data
def test_the_chinese_subset_is_read_with_its_answers_and_not_without() -> None:
    source = DATA / "test_zh_subset.json"
    found = read_safetybench(source, DATA / "test_answers_zh_subset.json")
    assert Counter(one.category for one in found) == dict.fromkeys(CATEGORIES, 300)
    assert len(problems(source)) == len(found) == 2100


@needs_data
def test_english_questions_agree_with_the_official_answers() -> None:
    found = read_safetybench(DATA / "safetybench_en_dev500.jsonl", DATA / "test_answers_en.json")
    assert found == read_safetybench(DATA / "safetybench_en_dev500.jsonl")
    assert {one.category for one in found} == set(CATEGORIES)


@needs_data
@pytest.mark.parametrize("language", ["en", "zh"])
def test_solved_examples_are_five_a_category(language: str) -> None:
    found = read_examples(DATA / f"dev_{language}.json")
    assert {name: len(examples) for name, examples in found.items()} == dict.fromkeys(CATEGORIES, 5)


@needs_data
def test_a_name_reads_the_files_of_the_named_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAQ_SAFETYBENCH", str(DATA))
    assert read_safetybench(Path("safetybench-zh-subset")) == read_safetybench(
        DATA / "test_zh_subset.json", DATA / "test_answers_zh_subset.json"
    )
    assert "test_en.json" in problems(Path("safetybench-en"))[0]
