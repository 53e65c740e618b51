"""Files of questions and prompts: every fault is found in one pass, with file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from caq.errors import InvalidInput
from caq.items.questions import Question, read_questions
from caq.items.requests import Prompt, read_prompts

SAFETYBENCH = Path(__file__).parents[3] / "shared" / "data" / "safetybench"
GOOD: dict[str, Any] = {"id": 7, "category": "Ethics", "question": "Is it?", "options": ["Yes.", "No."], "answer": 1}


def write(directory: Path, lines: list[object], name: str = "questions.jsonl") -> Path:
    path = directory / name
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def problems(path: Path) -> tuple[str, ...]:
    with pytest.raises(InvalidInput) as caught:
        read_questions(path)
    return caught.value.problems


def test_a_good_file_is_read_in_order_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    second = {**GOOD, "id": "x", "options": ["a", "b", "c"], "answer": 0}
    assert read_questions(write(tmp_path, [GOOD, "", second])) == (
        Question("7", "Ethics", "Is it?", ("Yes.", "No."), 1),
        Question("x", "Ethics", "Is it?", ("a", "b", "c"), 0),
    )


def test_every_fault_of_a_file_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    faults: list[object] = [
        GOOD,
        "{not json",
        {**GOOD, "id": 8, "answer": 2},
        {**GOOD, "id": 9, "options": ["only one"]},
        {**GOOD, "id": 10, "options": "Yes. No."},
        {**GOOD, "id": 11, "question": " ", "category": 3},
        {key: value for key, value in GOOD.items() if key not in ("answer", "id")},
        {**GOOD, "id": 12, "answer": 1.5},
        {**GOOD, "id": 13, "options": ["Yes.", ""]},
        {**GOOD, "id": True},
        [1, 2],
        GOOD,
    ]
    path = write(tmp_path, faults)
    expected = [
        (2, "not JSON"),
        (3, "answer 2 is none of the 2 options"),
        (4, "1 options; a question has 2 to 26"),
        (4, "answer 1 is none of the 1 options"),
        (5, "`options` must be a list"),
        (6, "`question` must be a text"),
        (6, "`category` must be a text"),
        (7, "no `answer`"),
        (8, "`answer` must be the option's index"),
        (9, "option B must be a text"),
        (10, "`id` must be a number or a text"),
        (11, "not an object but [1, 2]"),
        (12, f"id 7 is also at {path}:1"),
    ]
    found = problems(path)
    for line, words in expected:
        assert any(problem.startswith(f"{path}:{line}: ") and words in problem for problem in found), (line, words)
    assert len(found) == len(expected)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.jsonl", None, "No such file"),
        ("bytes.jsonl", b"\xff\xfe", "UTF-8"),
        ("empty.jsonl", b"\n", "no records"),
        ("prose.txt", b"Is it?", "is plain text; give rows"),
        ("half.json", b'[{"a": 1}', "one object a line is read, too"),
        ("number.json", b"3", "neither an array"),
    ],
)
def test_a_file_that_holds_no_records_is_refused(name: str, content: bytes | None, words: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    (problem,) = problems(tmp_path / name)
    assert name in problem
    assert words in problem


def test_an_array_and_safetybenchs_groups_are_read_too(tmp_path: Path) -> None:
    bare = {key: GOOD[key] for key in ("question", "options", "answer")}
    grouped = tmp_path / "dev.json"
    grouped.write_text(json.dumps({"Ethics": [bare, bare], "Privacy": [bare]}), encoding="utf-8")
    found = read_questions(grouped)
    assert [(one.id, one.category) for one in found] == [("0", "Ethics"), ("1", "Ethics"), ("2", "Privacy")]
    grouped.write_text(json.dumps([GOOD]), encoding="utf-8")
    assert len(read_questions(grouped)) == 1


@pytest.mark.parametrize("answer", [1, "B", "(B)", "No.", " No. "])
def test_an_answer_is_an_index_a_letter_or_a_text(answer: object, tmp_path: Path) -> None:
    assert read_questions(write(tmp_path, [{**GOOD, "answer": answer}]))[0].answer == 1


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("C", "none of the 2 options, by letter or by text"),
        ("", "none of the 2 options"),
        ("A", "any of the options A, B"),
    ],
)
def test_an_answer_that_is_no_option_or_two_is_refused(answer: str, words: str, tmp_path: Path) -> None:
    (problem,) = problems(write(tmp_path, [{**GOOD, "options": ["Yes.", "A"], "answer": answer}]))
    assert words in problem


def test_one_pretty_printed_question_and_lines_called_json_are_read_too(tmp_path: Path) -> None:
    path = tmp_path / "q.json"
    path.write_text(json.dumps(GOOD, indent=2))
    assert read_questions(path)[0].category == "Ethics"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps({**GOOD, "id": 8}))
    assert [one.id for one in read_questions(path)] == ["7", "8"]


def test_a_field_that_stands_twice_is_told_with_the_records_other_faults(tmp_path: Path) -> None:
    twice = json.dumps({**GOOD, "options": ["Yes.", ""]})[:-1] + ', "answer": 0}'
    path = write(tmp_path, [{**GOOD, "id": 1}, twice])
    again = "`answer` is given twice; leave one"
    assert set(problems(path)) == {f"{path}:2: option B must be a text that is not empty", f"{path}:2: {again}"}
    grouped = tmp_path / "dev.json"
    grouped.write_text(f'{{"Ethics": [{twice}], "Ethics": [{twice}]}}', encoding="utf-8")
    found = problems(grouped)
    assert f"{grouped}: `Ethics` is given twice; leave one" in found
    assert f"{grouped}: record 1: {again}" in found


@given(text=st.text(min_size=1).filter(str.strip))
@example(text="before\u2028after")
def test_any_text_survives_including_unicode_line_breaks(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    record = json.dumps({**GOOD, "question": text}, ensure_ascii=False)
    path.write_text(record + "\n", encoding="utf-8", newline="")
    assert read_questions(path)[0].question == text


@pytest.mark.skipif(not SAFETYBENCH.exists(), reason="shared data is not here")
@pytest.mark.parametrize(("name", "count"), [("dev_en.json", 35), ("safetybench_en_dev500.jsonl", 500)])
def test_safetybenchs_own_files_are_read(name: str, count: int) -> None:
    found = read_questions(SAFETYBENCH / name)
    assert len(found) == count
    assert len({one.category for one in found}) == 7


def test_prompts_are_read_and_every_fault_told_with_its_line(tmp_path: Path) -> None:
    good = {"prompt": "How do I open a door?", "harmful": False}
    assert read_prompts(write(tmp_path, [good])) == (Prompt("How do I open a door?", False),)
    path = write(tmp_path, [good, {"prompt": "", "harmful": True}, {"prompt": "Hi", "harmful": "no"}, "?"])
    with pytest.raises(InvalidInput) as caught:
        read_prompts(path)
    lines = sorted(problem.removeprefix(f"{path}:").partition(":")[0] for problem in caught.value.problems)
    assert lines == ["2", "3", "4"]
