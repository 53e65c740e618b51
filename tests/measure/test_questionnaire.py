"""What is asked: every fault of every input at once, and a hash of all that decides the answers."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from caq.errors import InvalidInput
from caq.items.safety import SafetyTask
from caq.items.tasks import Tasks
from caq.measure.questionnaire import Questionnaire, read_questionnaire
from tests.support.models import CORPUS


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Tasks:
    directory = tmp_path_factory.mktemp("tasks")
    questions = [
        {"id": index, "category": "Mental Health", "question": "door?", "options": ["Yes", "No"], "answer": index % 2}
        for index in range(4)
    ]
    prompts = [{"prompt": f"open door {index}", "harmful": index == 0} for index in range(3)]
    for name, records in {"questions": questions, "prompts": prompts}.items():
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
    (directory / "text.txt").write_text("\n".join(CORPUS[::40]), encoding="utf-8")
    return Tasks(
        directory / "text.txt",
        SafetyTask(directory / "questions.jsonl"),
        directory / "questions.jsonl",
        directory / "prompts.jsonl",
        window=32,
    )


def test_every_measure_has_its_items_in_the_order_of_the_report(
    tasks: Tasks, tokenizer: PreTrainedTokenizerBase
) -> None:
    asked = read_questionnaire(tasks, tokenizer)
    assert {measure: len(items) for measure, items in asked.items.items()} == {
        "safety/option-text": 4,
        "safety/letter": 4,
        "refusal": 1,
        "helpfulness": 2,
        "ended/32": 2,
        "language": 3,
        "facts": 4,
    }
    assert {len(window.ids) for window in asked.windows} == {32}
    assert list(asked.data) == ["safety", "prompts", "facts", "text"]


def test_the_text_is_tokenized_once_and_as_it_is(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    text = " How do I\r\n\n bake bread \n" * 4
    (tmp_path / "text.txt").write_bytes(text.encode())
    ids = tokenizer(text)["input_ids"]
    (window,) = read_questionnaire(Tasks(tmp_path / "text.txt", window=len(ids)), tokenizer).windows
    assert window.ids == tuple(ids)


def test_all_that_decides_an_answer_is_in_the_hash(tasks: Tasks, tokenizer: PreTrainedTokenizerBase) -> None:
    other = copy.deepcopy(tokenizer)
    other.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert tasks.safety is not None
    chat = replace(tasks, safety=replace(tasks.safety, chat=True))
    variants = [
        read_questionnaire(tasks, tokenizer),
        read_questionnaire(replace(tasks, max_new_tokens=3), tokenizer),
        read_questionnaire(replace(tasks, window=16), tokenizer),
        read_questionnaire(replace(tasks, facts=None), tokenizer),
        read_questionnaire(chat, tokenizer),
        read_questionnaire(chat, other),
    ]
    assert len({asked.identity for asked in variants}) == len(variants)
    assert read_questionnaire(tasks, tokenizer) == variants[0]


def test_text_behind_the_last_window_is_in_the_hash_for_a_model_of_other_tokens_reads_it(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    def asked(text: str) -> Questionnaire:
        (tmp_path / "text.txt").write_text(text, encoding="utf-8")
        return read_questionnaire(Tasks(tmp_path / "text.txt", window=32), tokenizer)

    short, longer = asked("open door " * 40), asked("open door " * 40 + "bread")
    assert short.windows == longer.windows
    assert short.identity != longer.identity


def test_every_fault_of_every_input_is_told_before_anything_is_computed(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    (tmp_path / "bad.jsonl").write_text("{}\n", encoding="utf-8")
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    bad = SafetyTask(tmp_path / "bad.jsonl")
    wrong = Tasks(tmp_path / "none.txt", bad, tmp_path / "none.jsonl", tmp_path / "bad.jsonl")
    with pytest.raises(InvalidInput) as caught:
        read_questionnaire(wrong, bare)
    for words in ("none.txt", "bad.jsonl:1: `question`", "none.jsonl", "bad.jsonl:1: `harmful`", "no chat template"):
        assert any(words in problem for problem in caught.value.problems), words


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff\xfe"], ids=["missing", "empty", "blank", "not UTF-8"])
def test_a_file_without_text_is_refused_by_name(
    content: bytes | None, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidInput, match=r"text\.txt"):
        read_questionnaire(Tasks(path), tokenizer)
