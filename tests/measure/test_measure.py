"""One model's answers: what does not fit its context is named as its file has it, and before anything is computed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caq.errors import InvalidInput
from caq.items.safety import SafetyTask, all_protocols
from caq.items.tasks import Tasks
from caq.measure import judging, store
from caq.measure.measure import RESPONSES_FILE, Arm, Plan, measure_arm
from caq.measure.questionnaire import Questionnaire, read_questionnaire
from caq.runners import find_source
from caq.runners.base import Running

HOW = Running(torch.device("cpu"))
#: Behind the first batch of two; the fourth has room for its options and not for a written answer.
WORDS = (3, 3, 3, 490, 600)


@pytest.fixture
def arm(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Arm:
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return Arm("model", "quantized", find_source(tmp_path / "model"), tokenizer, tmp_path / "arm")


@pytest.fixture
def asked(arm: Arm, tmp_path: Path) -> Questionnaire:
    questions, prompts = tmp_path / "questions.jsonl", tmp_path / "prompts.jsonl"
    rest = {"category": "Mental Health", "options": ["Yes", "No"], "answer": 0, "harmful": True}
    texts = enumerate("door " * words for words in WORDS)
    lines = "".join(json.dumps({"id": f"q{n}", "question": text, "prompt": text, **rest}) + "\n" for n, text in texts)
    for path in (questions, prompts):
        path.write_text(lines, encoding="utf-8")
    safety = SafetyTask(questions, protocols=tuple(all_protocols()))
    return read_questionnaire(Tasks(safety=safety, facts=questions, prompts=prompts), arm.tokenizer)


def test_all_items_that_do_not_fit_are_named_as_their_file_has_them(
    arm: Arm, asked: Questionnaire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "BATCH", 2)
    measure_arm(arm, Plan(asked, HOW, {}, ""))

    def said(name: str) -> list[str]:
        lines = store.read_object(arm.directory / f"{name}.jsonl.unmeasured")["reason"].splitlines()
        return [line.partition(" is ")[0].rpartition("/")[2] for line in lines]

    ids = ["questions.jsonl: the question with id q3", "questions.jsonl: the question with id q4"]
    assert said("safety") == ids
    assert said("facts") == ids[1:]
    assert said("responses") == ["prompts.jsonl: prompt 4 of 5", "prompts.jsonl: prompt 5 of 5"]
    assert len(store.read_rows(arm.directory / "facts.jsonl")) == 4
    assert len(store.read_rows(arm.directory / RESPONSES_FILE)) == 2


def test_a_response_that_the_aligned_model_has_no_room_for_is_named(arm: Arm, asked: Questionnaire) -> None:
    # The second is unreadable, so that the aligned model is asked of fewer than the file has.
    rows = [{"id": str(index), "response": "" if index == 1 else "Yes, that door."} for index in range(len(WORDS))]
    store.fill(arm.directory / RESPONSES_FILE, len(rows), lambda batch: rows[batch])
    with pytest.raises(InvalidInput, match=rf"arm/{RESPONSES_FILE}: the response with id 4 is 6\d\d tokens"):
        judging.check_coherence([arm.directory], arm, asked.prompts, "coherence.jsonl", HOW)
