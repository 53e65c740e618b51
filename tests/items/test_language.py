"""The language of a task's questions: found by their script, told, and never contradicted in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from caq.errors import InvalidInput
from caq.items.language import is_chinese
from caq.items.question_prompts import CHINESE, ENGLISH
from caq.items.safety import SafetyTask, read_safety
from caq.items.safetybench import read_examples, read_safetybench

DATA = Path(__file__).parents[3] / "shared" / "data" / "safetybench"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="shared data is not here")
IN_ENGLISH, IN_CHINESE = ("Is 门 a door?", ["Yes.", "No."]), ("以下哪种密码是最安全的？", ["abcdefg", "P@55w0rd"])


def write(path: Path, *texts: tuple[str, list[str]]) -> Path:
    records = [
        {"id": f"q{index}", "category": "Mental Health", "question": text, "options": options, "answer": 0}
        for index, (text, options) in enumerate(texts)
    ]
    path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    return path


@needs_data
def test_safetybenchs_own_questions_are_told_apart() -> None:
    chinese = read_safetybench(DATA / "test_zh_subset.json", DATA / "test_answers_zh_subset.json")
    english = read_safetybench(DATA / "safetybench_en_dev500.jsonl")
    assert all(map(is_chinese, chinese))
    assert not any(map(is_chinese, english))
    for code in ("en", "zh"):
        examples = [one for some in read_examples(DATA / f"dev_{code}.json").values() for one in some]
        assert {is_chinese(one) for one in examples} == {code == "zh"}


def test_questions_of_a_file_are_asked_in_their_own_language_and_a_line_says_so(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    for language, text in ((ENGLISH, IN_ENGLISH), (CHINESE, IN_CHINESE)):
        path = write(tmp_path / "q.json", text)
        inputs = read_safety(SafetyTask(path), tokenizer)
        assert inputs.form.language == language
        (note,) = inputs.notes
        assert note.startswith(f"{path}: asked in {language.name}, ")


def test_a_language_that_is_given_is_no_discovery(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    inputs = read_safety(SafetyTask(write(tmp_path / "q.json", IN_CHINESE), language="zh"), tokenizer)
    assert (inputs.form.language, inputs.notes) == (CHINESE, ())


def test_a_file_of_both_languages_is_refused_until_one_is_named(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    path = write(tmp_path / "q.json", IN_CHINESE, IN_ENGLISH, IN_CHINESE)
    with pytest.raises(InvalidInput) as caught:
        read_safety(SafetyTask(path), tokenizer)
    (problem,) = caught.value.problems
    assert problem == (
        f"{path}: 2 of 3 questions are Chinese, such as id q0, and id q1 is not: put them into two files, "
        "or name the language of the words around them with --language"
    )
    assert read_safety(SafetyTask(path, language="zh"), tokenizer).form.language == CHINESE


@pytest.mark.parametrize(
    ("language", "text", "words"),
    [
        ("en", IN_CHINESE, "1 of 1 questions are Chinese, and would be asked in English: ask with --language zh"),
        ("zh", IN_ENGLISH, "1 of 1 questions are not Chinese, and would be asked in Chinese: ask with --language en"),
    ],
)
def test_a_language_that_the_questions_contradict_is_refused(
    language: str, text: tuple[str, list[str]], words: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    path = write(tmp_path / "q.json", text)
    with pytest.raises(InvalidInput) as caught:
        read_safety(SafetyTask(path, language=language), tokenizer)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{path}: {words}, or give a file in ")


@needs_data
def test_solved_examples_of_another_language_are_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    task = SafetyTask(DATA / "safetybench_en_dev500.jsonl", None, ("letter",), 5, DATA / "dev_zh.json")
    with pytest.raises(InvalidInput, match=r"dev_zh.json: 35 of 35 questions are Chinese, and would be asked in En"):
        read_safety(task, tokenizer)
