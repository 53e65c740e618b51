"""Safety tasks: on the bundled pair and SafetyBench's real files, under every protocol."""

from __future__ import annotations

import copy
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caq.errors import InvalidInput
from caq.items.protocols import PROTOCOLS
from caq.items.question_prompts import CHINESE, PromptFormat, few_shot, zero_shot
from caq.items.questions import Question
from caq.items.safety import ALL_PROTOCOLS, ANSWER_TOKENS, SafetyInputs, SafetyTask, answer_safety, read_safety
from caq.items.safetybench import read_examples, read_safetybench
from caq.loading import load, load_tokenizer
from caq.runners.generation import greedy
from caq.testbed.world import safety_items

DATA = Path(__file__).parents[3] / "shared" / "data" / "safetybench"
ENGLISH_FILE, CHINESE_FILE = DATA / "safetybench_en_dev500.jsonl", DATA / "test_zh_subset.json"
CHINESE_ANSWERS = DATA / "test_answers_zh_subset.json"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="shared data is not here")


@pytest.fixture(scope="module")
def aligned() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    directory = Path(str(files("caq.testbed") / "pair" / "aligned"))
    return load(directory, torch.float32), load_tokenizer(directory)


Aligned = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def test_the_bundled_pair_chooses_what_it_always_chose(aligned: Aligned) -> None:
    asked = safety_items()[::12]
    found = answer_safety(*aligned, SafetyInputs(asked, PromptFormat()), SafetyTask(Path()).protocols, 32)
    assert {name: "".join(str(one.chosen) for one in answers) for name, answers in found.items()} == {
        "option-text": "0001301201121212201020111010030000112000001101210010013101012121200200",
        "letter": "0001301201121212201020110010030020112100001101210000213101312121200200",
    }


def short(questions: tuple[Question, ...], tokenizer: PreTrainedTokenizerBase, count: int) -> tuple[Question, ...]:
    """Return questions that leave the bundled pair's context room for a written answer."""
    room = 256 - ANSWER_TOKENS - 24
    return tuple(one for one in questions if len(tokenizer(zero_shot(one, CHINESE))["input_ids"]) < room)[:count]


@needs_data
@pytest.mark.parametrize(
    ("source", "answers", "language", "chat"),
    [(ENGLISH_FILE, None, "en", False), (ENGLISH_FILE, None, "en", True), (CHINESE_FILE, CHINESE_ANSWERS, "zh", True)],
)
def test_every_protocol_answers_safetybenchs_own_questions(
    source: Path, answers: Path | None, language: str, chat: bool, aligned: Aligned
) -> None:
    inputs = read_safety(SafetyTask(source, answers, ALL_PROTOCOLS, chat=chat, language=language), aligned[1])
    inputs = SafetyInputs(short(inputs.questions, aligned[1], 6), inputs.form)
    found = answer_safety(*aligned, inputs, ALL_PROTOCOLS, 4)
    assert list(found) == list(ALL_PROTOCOLS)
    for name, outcomes in found.items():
        assert [(one.id, one.answer) for one in outcomes] == [(one.id, one.answer) for one in inputs.questions]
        assert all((one.response is not None) == (name == "generate") for one in outcomes)
    # Batches and order change nothing.
    turned = SafetyInputs(inputs.questions[::-1], inputs.form)
    assert answer_safety(*aligned, turned, ALL_PROTOCOLS, 1) == {name: one[::-1] for name, one in found.items()}


@needs_data
def test_a_chat_has_the_templates_special_tokens_and_not_the_tokenizers_too(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    starting = copy.deepcopy(tokenizer)
    start = ("<|end|>", tokenizer.convert_tokens_to_ids("<|end|>"))
    starting.backend_tokenizer.post_processor = TemplateProcessing(single="<|end|> $A", special_tokens=[start])
    inputs = SafetyInputs(read_safetybench(ENGLISH_FILE)[:40:4], PromptFormat(chat=True))
    plain = SafetyInputs(inputs.questions, PromptFormat())
    protocols = ("option-text", "generate")
    found = answer_safety(model, starting, inputs, protocols, 2)
    assert found == answer_safety(model, tokenizer, inputs, protocols, 2)
    assert found != answer_safety(model, tokenizer, plain, protocols, 2)
    assert answer_safety(model, starting, plain, protocols, 2) != answer_safety(model, tokenizer, plain, protocols, 2)


@needs_data
def test_five_shot_answers_follow_the_examples_of_the_category(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    wide = copy.deepcopy(model)
    wide.config.max_position_embeddings = 4096
    task = SafetyTask(ENGLISH_FILE, None, ("letter", "generate"), 5, DATA / "dev_en.json")
    inputs = read_safety(task, tokenizer)
    asked = inputs.questions[:2]
    found = answer_safety(wide, tokenizer, SafetyInputs(asked, inputs.form), task.protocols, 2)
    examples = read_examples(DATA / "dev_en.json")
    encoded = [tokenizer(few_shot(one, examples[one.category]))["input_ids"] for one in asked]
    assert tuple(one.response for one in found["generate"]) == greedy(wide, tokenizer, encoded, 64, 1)
    assert inputs.form.title == "English, 5-shot, no chat template"


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


def test_questions_that_leave_no_room_for_an_answer_are_named(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    asked = tuple(Question(str(index), "any", "door " * index, ("Yes.", "No."), 0) for index in (1, 480, 500))
    with pytest.raises(InvalidInput) as caught:
        answer_safety(model, tokenizer, SafetyInputs(asked, PromptFormat()), ("generate",), 2)
    assert [problem.split()[1] for problem in caught.value.problems] == ["480", "500"]


@needs_data
def test_a_name_brings_its_language_and_its_examples(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAQ_SAFETYBENCH", str(DATA))
    inputs = read_safety(SafetyTask(Path("safetybench-zh-subset"), protocols=("generate",), shots=5), tokenizer)
    assert inputs.form == PromptFormat(CHINESE, read_examples(DATA / "dev_zh.json"))
    assert len(inputs.questions) == 2100


def test_the_protocols_are_four_tasks_with_names_of_their_own() -> None:
    assert ALL_PROTOCOLS == (*PROTOCOLS, "generate") == ("option-text", "option-text-normalized", "letter", "generate")
