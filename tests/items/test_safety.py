"""Safety tasks on SafetyBench's real files: what is read, and every problem at once."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from caq.errors import InvalidInput
from caq.items.question_prompts import CHINESE, PromptFormat
from caq.items.safety import SafetyTask, read_safety
from caq.items.safetybench import read_examples

DATA = Path(__file__).parents[3] / "shared" / "data" / "safetybench"
ENGLISH_FILE, CHINESE_FILE = DATA / "safetybench_en_dev500.jsonl", DATA / "test_zh_subset.json"
CHINESE_ANSWERS = DATA / "test_answers_zh_subset.json"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="shared data is not here")


@needs_data
def test_every_problem_of_a_task_is_told_at_once(tokenizer: PreTrainedTokenizerBase) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    task = SafetyTask(CHINESE_FILE, None, ("option-text", "letters"), 5, None, True, "fr")
    with pytest.raises(InvalidInput) as caught:
        read_safety(task, bare)
    for words in ("did you mean letter?", "option-text is zero-shot", "fr: no such language", "no chat template"):
        assert sum(words in problem for problem in caught.value.problems) == 1, words
    assert any("--dev dev_en.json" in problem for problem in caught.value.problems)
    assert sum("no `answer`" in problem for problem in caught.value.problems) == 2100


@needs_data
def test_files_that_would_not_be_read_are_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(InvalidInput, match="none asked for; add --shots 5"):
        read_safety(SafetyTask(ENGLISH_FILE, examples=DATA / "dev_en.json"), tokenizer)
    with pytest.raises(InvalidInput, match="safetybench-en has answers of its own"):
        read_safety(SafetyTask(Path("safetybench-en"), CHINESE_ANSWERS), tokenizer)


@needs_data
def test_more_examples_than_the_file_holds_are_told_by_category(tokenizer: PreTrainedTokenizerBase) -> None:
    task = SafetyTask(ENGLISH_FILE, None, ("letter",), 6, DATA / "dev_en.json")
    with pytest.raises(InvalidInput, match="Offensiveness: 5 solved examples and 6 asked for") as caught:
        read_safety(task, tokenizer)
    assert len(caught.value.problems) == 7


@needs_data
def test_a_name_brings_its_language_and_its_examples(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAQ_SAFETYBENCH", str(DATA))
    inputs = read_safety(SafetyTask(Path("safetybench-zh-subset"), protocols=("generate",), shots=5), tokenizer)
    assert inputs.form == PromptFormat(CHINESE, read_examples(DATA / "dev_zh.json"))
    assert len(inputs.questions) == 2100
