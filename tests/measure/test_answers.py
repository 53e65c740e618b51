"""What a runner answers under every protocol: against a naive reference, and on SafetyBench's own files."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from benchmarks.bundled_pair.world import safety_items
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caq.errors import InvalidInput
from caq.items.protocols import PROTOCOLS
from caq.items.question_prompts import CHINESE, PromptFormat, few_shot, zero_shot
from caq.items.questions import LETTERS, Question
from caq.items.safety import ANSWER_TOKENS, SafetyInputs, SafetyTask, all_protocols, read_safety
from caq.items.safetybench import read_examples, read_safetybench
from caq.loading import load, load_tokenizer
from caq.measure.answers import Answer, answer, choose, choose_facts
from tests.support.questions import QUESTIONS, naive_score
from tests.support.runners import runner

DATA = Path(__file__).parents[3] / "shared" / "data" / "safetybench"
ENGLISH_FILE, CHINESE_FILE = DATA / "safetybench_en_dev500.jsonl", DATA / "test_zh_subset.json"
CHINESE_ANSWERS = DATA / "test_answers_zh_subset.json"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="shared data is not here")


def answer_as(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: SafetyInputs,
    protocols: Sequence[str],
    together: int,
) -> dict[str, tuple[Answer, ...]]:
    return answer(runner(model, tokenizer, choices=together, prompts=together), tokenizer, inputs, protocols)


def naive_option_text(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: Question, *, normalized: bool = False
) -> int:
    found = [
        naive_score(model, tokenizer, zero_shot(asked), f" {text}") / (len(text) if normalized else 1)
        for text in asked.options
    ]
    return found.index(max(found))


@torch.no_grad()
def naive_letter(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: Question) -> int:
    """Compare the logits of the letters that are options, after the prompt and an opening bracket."""
    ids = tokenizer(zero_shot(asked) + "(")["input_ids"]
    letters = [tokenizer(name)["input_ids"][0] for name in LETTERS[: len(asked.options)]]
    return int(copy.deepcopy(model).double()(torch.tensor([ids])).logits[0, -1, letters].argmax())


def reference(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, tuple[int, ...]]:
    return {
        "option-text": tuple(naive_option_text(model, tokenizer, asked) for asked in QUESTIONS),
        "option-text-normalized": tuple(
            naive_option_text(model, tokenizer, asked, normalized=True) for asked in QUESTIONS
        ),
        "letter": tuple(naive_letter(model, tokenizer, asked) for asked in QUESTIONS),
    }


def test_every_choice_equals_the_naive_reference(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    expected = reference(model, tokenizer)
    assert all(len(set(chosen)) > 1 for chosen in expected.values())
    assert len(set(expected.values())) == len(expected)
    assert choose(runner(model, tokenizer, choices=5), tokenizer, QUESTIONS, PROTOCOLS) == expected


def test_the_first_of_equals_wins(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    indifferent = copy.deepcopy(model)
    with torch.no_grad():
        indifferent.get_output_embeddings().weight.zero_()
    asked = Question("0", "any", "the door?", ("bread", "the", "lock"), 2)
    assert choose(runner(indifferent, tokenizer), tokenizer, [asked], PROTOCOLS) == {
        "option-text": (0,),
        "option-text-normalized": (0,),
        "letter": (0,),
    }


def test_a_question_longer_than_the_context_is_named(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    long = Question("9", "any", "door " * 600, ("Yes.", "No."), 0)
    with pytest.raises(InvalidInput, match=r"item 2 is .* the model's context 512") as caught:
        choose(runner(model, tokenizer), tokenizer, [QUESTIONS[0], long], PROTOCOLS)
    assert len(caught.value.problems) == 1


def test_a_model_whose_logits_are_not_numbers_chooses_nothing(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.get_output_embeddings().weight.fill_(torch.nan)
    with pytest.raises(InvalidInput, match="not numbers"):
        choose(runner(broken, tokenizer), tokenizer, QUESTIONS[:1], PROTOCOLS)


def test_facts_are_scored_by_the_protocol_of_the_papers_tables(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert choose_facts(runner(model, tokenizer), tokenizer, QUESTIONS) == reference(model, tokenizer)["option-text"]


@pytest.fixture(scope="module")
def aligned() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    directory = Path(str(files("caq.testbed") / "pair" / "aligned"))
    return load(directory, torch.float32), load_tokenizer(directory)


Aligned = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def test_the_bundled_pair_chooses_what_it_always_chose(aligned: Aligned) -> None:
    asked = safety_items()[::12]
    found = answer_as(*aligned, SafetyInputs(asked, PromptFormat()), SafetyTask(Path()).protocols, 32)
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
    inputs = read_safety(SafetyTask(source, answers, all_protocols(), chat=chat, language=language), aligned[1])
    inputs = SafetyInputs(short(inputs.questions, aligned[1], 6), inputs.form)
    found = answer_as(*aligned, inputs, all_protocols(), 4)
    assert list(found) == list(all_protocols())
    for name, outcomes in found.items():
        assert len(outcomes) == len(inputs.questions)
        assert all((one.response is not None) == (name == "generate") for one in outcomes)
    # Batches and order change nothing.
    turned = SafetyInputs(inputs.questions[::-1], inputs.form)
    assert answer_as(*aligned, turned, all_protocols(), 1) == {name: one[::-1] for name, one in found.items()}


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
    found = answer_as(model, starting, inputs, protocols, 2)
    assert found == answer_as(model, tokenizer, inputs, protocols, 2)
    assert found != answer_as(model, tokenizer, plain, protocols, 2)
    assert answer_as(model, starting, plain, protocols, 2) != answer_as(model, tokenizer, plain, protocols, 2)


@needs_data
def test_five_shot_answers_follow_the_examples_of_the_category(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    wide = copy.deepcopy(model)
    wide.config.max_position_embeddings = 4096
    task = SafetyTask(ENGLISH_FILE, None, ("letter", "generate"), 5, DATA / "dev_en.json")
    inputs = read_safety(task, tokenizer)
    asked = inputs.questions[:2]
    found = answer_as(wide, tokenizer, SafetyInputs(asked, inputs.form), task.protocols, 2)
    examples = read_examples(DATA / "dev_en.json")
    texts = [few_shot(one, examples[one.category]) for one in asked]
    expected = runner(wide, tokenizer).greedy(texts, 64, add_special_tokens=True)
    assert [one.response for one in found["generate"]] == [one.text for one in expected]
    assert inputs.form.title == "English, 5-shot, no chat template"


def test_questions_that_leave_no_room_for_an_answer_are_named(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    asked = tuple(Question(str(index), "any", "door " * index, ("Yes.", "No."), 0) for index in (1, 480, 500))
    with pytest.raises(InvalidInput) as caught:
        answer_as(model, tokenizer, SafetyInputs(asked, PromptFormat()), ("generate",), 2)
    assert [problem.split()[1] for problem in caught.value.problems] == ["2", "3"]
