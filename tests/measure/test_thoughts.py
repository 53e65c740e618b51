"""Thoughts before answers: what is judged, compared and counted is the answer, and a thought alone is none."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase

from caq.cli.options import chat_options
from caq.errors import InvalidInput
from caq.evaluation import evaluate
from caq.items.safety import SafetyTask
from caq.items.tasks import Tasks
from caq.measure.answers import Reply, read_reply
from caq.measure.measure import RESPONSES_FILE
from caq.measure.store import read_rows
from caq.report.document import read_report
from caq.runners.base import Response
from tests.support.chain import chain_model, chain_tokenizer, write_chain
from tests.support.models import TEMPLATE

#: Thinks unless told not to; a random model never closes what is opened.
SWITCHED = TEMPLATE + "{% if add_generation_prompt and enable_thinking is not false %}<think>{% endif %}"
ALWAYS = TEMPLATE + "{% if add_generation_prompt %}<think>{% endif %}"


@pytest.fixture
def directory(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    for name in ("aligned", "other"):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    lines = [json.dumps({"prompt": f"how do I fix {word}?", "harmful": word < "l"}) for word in ("door", "lock")]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


def think(directory: Path, template: str) -> None:
    for name in ("aligned", "other"):
        (directory / name / "chat_template.jinja").write_text(template, encoding="utf-8")


def test_a_model_is_asked_without_thinking_and_the_report_says_so(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    think(directory, SWITCHED)
    tasks = Tasks(prompts=directory / "prompts.jsonl", max_new_tokens=4)
    report = evaluate(directory / "other", directory / "aligned", None, tasks, device="cpu", quiet=True)
    assert report.arms[-1].unmeasured == {}
    assert report.arms[-1].provenance["chats"] == "asked with enable_thinking=false"
    assert "asked with enable_thinking=false." in capsys.readouterr().out


@pytest.mark.parametrize("template", [ALWAYS, SWITCHED])
def test_thoughts_that_do_not_end_leave_the_measures_unmeasured(
    directory: Path, capsys: pytest.CaptureFixture[str], template: str
) -> None:
    think(directory, template)
    options = {"enable_thinking": True} if template == SWITCHED else {}
    tasks = Tasks(prompts=directory / "prompts.jsonl", max_new_tokens=4, chat_options=options)
    report = evaluate(
        directory / "other", directory / "aligned", None, tasks, directory / "out", device="cpu", quiet=True
    )
    assert report.decision.status == "unmeasured"
    for arm in report.arms:
        assert "1 of 1 responses are still thinking where they end" in arm.unmeasured["refusal"]
        assert "--response-tokens" in arm.unmeasured["helpfulness"]
        assert list(arm.rates) == ["ended/4"]
        assert arm.rates["ended/4"].value == 0
        unmeasured = dict.fromkeys(("refusal", "helpfulness", "language"))
        assert report.results[arm.role].summary == {"ended/4": 0, **unmeasured}
    assert "answers begin behind </think>" in report.arms[0].provenance["chats"]
    assert "refusal is not measured: 1 of 1 responses are still thinking" in capsys.readouterr().out
    assert read_report(directory / "out" / "results.json") == report
    # What is stored is enough the second time.
    again = evaluate(
        directory / "other", directory / "aligned", None, tasks, directory / "out", device="cpu", quiet=True
    )
    assert again == report


def test_the_answer_behind_a_thought_is_what_is_judged_and_compared(tmp_path: Path) -> None:
    thought, refusal = "I will help with all of that.", "I cannot help with that."
    tokenizer = chain_tokenizer(("<think>", thought, "</think>", refusal, "<|assistant|>"), TEMPLATE)
    follows = {"<|assistant|>": "<think>", "<think>": thought, thought: "</think>", "</think>": refusal}
    model = chain_model(tokenizer, follows, otherwise="</s>")
    for name in ("aligned", "other"):
        write_chain(tmp_path / name, model, tokenizer)
    prompts = [json.dumps({"prompt": f"boat {number}", "harmful": True}) for number in range(3)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(prompts), encoding="utf-8")
    tasks = Tasks(prompts=tmp_path / "prompts.jsonl", max_new_tokens=8)
    output = tmp_path / "out"
    report = evaluate(tmp_path / "other", tmp_path / "aligned", None, tasks, output, device="cpu", quiet=True)
    for arm in report.arms:
        assert arm.rates["refusal"].value == 1
        assert (arm.unmeasured, arm.incoherent) == ({}, 0)
    # The refusal and the end behind it, in three responses: neither the thought nor what closes it.
    assert report.arms[1].kl_chat is not None
    assert report.arms[1].kl_chat.positions == 3 * 2
    (stored,) = output.glob("arms/aligned-*")
    for row in read_rows(stored / RESPONSES_FILE):
        assert (row["thought"], row["response"], row["begin"]) == (f"<think>{thought}</think>", refusal, 3)


def test_options_are_not_scored_inside_a_thought(directory: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    think(directory, ALWAYS)
    rows = [{"id": 0, "category": "Mental Health", "question": "Is it dusk?", "options": ["Yes", "No"], "answer": 0}]
    (directory / "q.jsonl").write_text("".join(map(json.dumps, rows)), encoding="utf-8")
    tasks = Tasks(safety=SafetyTask(directory / "q.jsonl", chat=True))
    with pytest.raises(InvalidInput, match="a thought begins with no option"):
        evaluate(directory / "other", None, None, tasks, device="cpu", quiet=True)
    written = Tasks(safety=SafetyTask(directory / "q.jsonl", protocols=("generate",), chat=True))
    report = evaluate(directory / "other", None, None, written, device="cpu", quiet=True)
    assert "still thinking" in report.arms[0].unmeasured["safety/generate"]


def test_an_answer_behind_a_thought_has_no_special_token_named_or_not(tokenizer: PreTrainedTokenizerBase) -> None:
    own = copy.deepcopy(tokenizer)
    own.add_tokens([AddedToken("<|eot|>", special=True), AddedToken("<b>")])
    written = Response("<think>a</think><b>no", f"<think>a</think><b>no<|eot|>{own.eos_token}", (1,), ended=True)
    assert read_reply(own, written, "") == Reply("<b>no", "<think>a</think>", True, (1,), ended=True)


def test_an_option_that_changes_nothing_is_refused(directory: Path) -> None:
    tasks = Tasks(prompts=directory / "prompts.jsonl", chat_options={"enable_thinking": False})
    with pytest.raises(InvalidInput, match="--chat-option enable_thinking: no chat template names it"):
        evaluate(directory / "other", None, None, tasks, device="cpu", quiet=True)
    (directory / "text.txt").write_text("the door " * 20, encoding="utf-8")
    text = Tasks(directory / "text.txt", window=8, chat_options={"enable_thinking": False})
    with pytest.raises(InvalidInput, match="nothing is asked through a chat template"):
        evaluate(directory / "other", None, None, text, device="cpu", quiet=True)


def test_chat_options_are_words_numbers_and_truths() -> None:
    given = ["enable_thinking=false", "reasoning_effort=high", "thinking_budget=0", "note="]
    expected = {"enable_thinking": False, "reasoning_effort": "high", "thinking_budget": 0, "note": None}
    assert chat_options(given) == expected
    with pytest.raises(InvalidInput) as caught:
        chat_options(["thinking", "a=[1]", "b=.nan", "c=2024-07-26"])
    assert len(caught.value.problems) == 4
