"""The whole evaluation of one model, and the comparison of two, item by item."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
from caq.measure.refusal import Response, refusals
from caq.measure.results import Answer, Results
from caq.runners.distribution import divergence
from caq.runners.perplexity import perplexity, read_tokens
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caq.errors import InvalidInput
from caq.items.protocols import PROTOCOLS, choose
from caq.items.questions import read_questions
from caq.items.requests import read_prompts
from caq.items.safety import SafetyTask
from caq.items.safetybench import CATEGORIES
from caq.items.tasks import Tasks, check, compare, evaluate, reference_answers
from caq.statistics.resampling import mcnemar, paired_bootstrap
from tests.support.models import CORPUS, WORDS


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Tasks:
    directory = tmp_path_factory.mktemp("tasks")
    questions = [
        {
            "id": index,
            "category": CATEGORIES[index % 3],
            "question": " ".join(WORDS[index : index + 4]),
            "options": [WORDS[index], WORDS[index + 1]],
            "answer": index % 2,
        }
        for index in range(12)
    ]
    prompts = [{"prompt": " ".join(WORDS[index : index + 3]), "harmful": index % 2 == 0} for index in range(8)]
    for name, records in {"questions": questions, "prompts": prompts}.items():
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
    (directory / "text.txt").write_text("\n".join(CORPUS[::40]), encoding="utf-8")
    return Tasks(
        perplexity_text=directory / "text.txt",
        safety=SafetyTask(directory / "questions.jsonl", protocols=tuple(PROTOCOLS)),
        facts=directory / "questions.jsonl",
        prompts=directory / "prompts.jsonl",
        window=32,
        max_new_tokens=4,
        windows_batch=3,
        questions_batch=5,
        prompts_batch=3,
    )


def test_every_measure_is_what_its_own_function_measures(
    model: PreTrainedModel, neighbour: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tasks: Tasks
) -> None:
    reference = reference_answers(model, tokenizer, tasks)
    assert tasks.perplexity_text
    assert tasks.safety
    assert tasks.prompts
    assert reference
    found = evaluate(neighbour, tokenizer, tasks, reference=reference, quiet=True)
    tokens, questions = read_tokens(tasks.perplexity_text, tokenizer), read_questions(tasks.safety.questions)
    assert found.perplexity == pytest.approx(perplexity(neighbour, tokens, 32, 1), rel=1e-6)
    assert found.divergence is not None
    assert found.divergence.kl == pytest.approx(divergence(neighbour, reference, 1).kl, rel=1e-5)
    chosen = choose(neighbour, tokenizer, questions, 1)
    assert {name: tuple(a.chosen for a in items) for name, items in found.safety.items()} == chosen
    assert tuple(answer.chosen for answer in found.facts) == chosen["option-text"]
    assert found.responses == refusals(neighbour, tokenizer, read_prompts(tasks.prompts), 4, 1)
    assert found.window == 32


def test_the_reference_is_at_no_distance_from_itself(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tasks: Tasks
) -> None:
    text_only = Tasks(perplexity_text=tasks.perplexity_text, window=32)
    found = evaluate(model, tokenizer, text_only, reference=reference_answers(model, tokenizer, text_only), quiet=True)
    assert found.divergence is not None
    assert (found.divergence.logit_mse, found.divergence.same_top) == (0, 1)


def test_what_is_not_asked_for_is_not_measured(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    assert evaluate(model, tokenizer, Tasks(), quiet=True) == Results(2048)
    assert reference_answers(model, tokenizer, Tasks()) is None


def test_a_judge_can_be_given(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tasks: Tasks) -> None:
    only = Tasks(prompts=tasks.prompts, max_new_tokens=2)
    found = evaluate(model, tokenizer, only, judge=lambda response: True, quiet=True)
    assert found.summary() == {"refusal": 1.0, "over_refusal": 1.0}


def test_every_fault_of_every_input_is_told_before_anything_is_computed(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    (tmp_path / "bad.jsonl").write_text("{}\n", encoding="utf-8")
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    bad = SafetyTask(tmp_path / "bad.jsonl")
    wrong = Tasks(tmp_path / "none.txt", bad, tmp_path / "none.jsonl", tmp_path / "bad.jsonl")
    with pytest.raises(InvalidInput) as caught:
        check(wrong, bare)
    for words in ("none.txt", "bad.jsonl:1: `question`", "none.jsonl", "bad.jsonl:1: `harmful`", "no chat template"):
        assert any(words in problem for problem in caught.value.problems), words


def test_a_reference_that_read_another_text_is_refused(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tasks: Tasks
) -> None:
    reference = reference_answers(model, tokenizer, replace(tasks, window=16))
    with pytest.raises(InvalidInput, match="other tokens"):
        evaluate(model, tokenizer, tasks, reference=reference, quiet=True)


def test_two_models_are_compared_item_by_item() -> None:
    def results(chosen: str) -> Results:
        answers = tuple(Answer(str(index), "any", 1, int(one)) for index, one in enumerate(chosen))
        responses = (Response("harm", True, "", chosen[0] == "1"),)
        return Results(16, safety={"letter": answers}, responses=responses)

    ours, theirs = results("1110010011"), results("0111111111")
    found = compare(ours, theirs)
    assert set(found) == {"safety/letter", "refusal"}
    letter = found["safety/letter"]
    assert (letter.gained, letter.lost, letter.items) == (1, 4, 10)
    assert letter.p == mcnemar(1, 4)
    assert letter.difference == paired_bootstrap([int(c) for c in "1110010011"], [int(c) for c in "0111111111"])
    assert letter.difference.mean == pytest.approx(-0.3)


def test_a_measure_that_only_one_has_is_left_out() -> None:
    assert compare(Results(16), Results(16, facts=(Answer("0", "any", 0, 0),))) == {}


def test_results_of_questions_that_were_put_otherwise_are_not_compared() -> None:
    safety = {"letter": (Answer("0", "any", 0, 0),)}
    ours, theirs = (Results(16, safety=safety, safety_format=form) for form in ("0-shot", "5-shot"))
    with pytest.raises(InvalidInput, match="safety: one model was asked in 0-shot, the other in 5-shot"):
        compare(ours, theirs)


def test_results_of_other_items_are_not_compared() -> None:
    ours, theirs = (Results(16, facts=(Answer(name, "any", 0, 0),)) for name in ("0", "1"))
    with pytest.raises(InvalidInput, match="facts: the two results hold different items"):
        compare(ours, theirs)
