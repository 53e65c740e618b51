"""lm-eval's tasks on our models: each output type agrees with our own arithmetic, and mistakes are told in time."""

from __future__ import annotations

import json
import re
import sys
from math import exp
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import lm_eval
from caq.errors import InvalidInput
from caq.lm_eval.harness import CONVENTIONS, Benchmarks, measure, prepare
from caq.loading import load, load_tokenizer
from caq.measure.record import Ability
from caq.runners.base import Choice
from caq.runners.likelihood import scores
from caq.testbed.export import export
from tests.support.harness import DATA, ITEMS, SUBJECTS, read_lines, write_lines, write_tasks

pytestmark = pytest.mark.skipif(not DATA.exists(), reason="shared data is not here")
NAMES = ("mmlu_two", "last_word", "story", "ending")


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bundled")
    export(directory)
    return directory


@pytest.fixture(scope="module")
def aligned(bundled: Path) -> PreTrainedModel:
    return load(bundled / "aligned", torch.float32)


@pytest.fixture(scope="module")
def own_tokenizer(bundled: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(bundled / "aligned")


@pytest.fixture(scope="module")
def tasks(
    tmp_path_factory: pytest.TempPathFactory, aligned: PreTrainedModel, own_tokenizer: PreTrainedTokenizerBase
) -> Path:
    """The task files; the endings to write are the aligned model's own."""
    directory = write_tasks(tmp_path_factory.mktemp("tasks"))
    texts = [str(row["context"]) for row in read_lines(directory / "lambada.jsonl")]
    endings = [greedy(aligned, own_tokenizer, text) for text in texts]
    rows = [{"context": text, "continuation": ending} for text, ending in zip(texts, endings, strict=True)]
    write_lines(directory / "own.jsonl", rows)
    file = directory / "ending.yaml"
    file.write_text(file.read_text(encoding="utf-8").replace("lambada.jsonl", "own.jsonl"), encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def found(tasks: Path, aligned: PreTrainedModel, own_tokenizer: PreTrainedTokenizerBase) -> dict[str, Ability]:
    return measure(aligned, own_tokenizer, prepare(Benchmarks(NAMES, (tasks,))))


def greedy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    written = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    return str(tokenizer.decode(written, skip_special_tokens=True)).split(".")[0]


def mmlu_prompt(row: dict[str, Any]) -> str:
    lines = [str(row["question"]).strip()]
    lines += [f"{letter}. {text}" for letter, text in zip("ABCD", row["choices"], strict=True)]
    return "\n".join([*lines, "Answer:"])


def test_a_group_of_choices_agrees_item_by_item_with_our_own_likelihoods(
    tasks: Path, aligned: PreTrainedModel, own_tokenizer: PreTrainedTokenizerBase, found: dict[str, Ability]
) -> None:
    rows = [row for subject in SUBJECTS for row in read_lines(tasks / f"{subject}_validation.jsonl")]
    choices = [Choice(mmlu_prompt(row), (" A", " B", " C", " D")) for row in rows]
    expected = [
        values.index(max(values)) == row["answer"]
        for row, values in zip(rows, scores(aligned, own_tokenizer, choices, 8), strict=True)
    ]
    group = found["mmlu_two"]
    assert group.outcomes == tuple(expected)
    assert 0 < group.value == pytest.approx(sum(expected) / len(expected))
    assert (group.metric, group.shots, group.truncated, group.count) == ("acc", 0, 0, len(rows))
    assert list(group.parts) == [f"two_{subject}" for subject in SUBJECTS]
    assert group.standard_error is not None
    assert 0 < group.standard_error < 0.2


def test_likelihoods_of_one_text_agree_with_ours(
    tasks: Path, aligned: PreTrainedModel, own_tokenizer: PreTrainedTokenizerBase, found: dict[str, Ability]
) -> None:
    rows = [*read_lines(tasks / "lambada.jsonl")]
    choices = [Choice(str(row["context"]), (f" {row['continuation']}",)) for row in rows]
    values = [one for (one,) in scores(aligned, own_tokenizer, choices, 4)]
    # The first metric that lm-eval returns; its items are likelihoods, of which it is not the mean.
    perplexity = found["last_word"]
    assert perplexity.metric == "perplexity"
    assert perplexity.value == pytest.approx(exp(-sum(values) / len(values)), rel=1e-4)
    assert (perplexity.outcomes, perplexity.higher_is_better, perplexity.count) == ((), False, ITEMS)


@torch.no_grad()
def test_perplexity_of_a_rolling_text_agrees_with_ours(
    tasks: Path, aligned: PreTrainedModel, own_tokenizer: PreTrainedTokenizerBase, found: dict[str, Ability]
) -> None:
    total, words = 0.0, 0
    for row in read_lines(tasks / "lambada.jsonl"):
        text = str(row["context"])[:200]
        ids = torch.tensor([[own_tokenizer.bos_token_id, *own_tokenizer(text)["input_ids"]]])
        chances = aligned(ids).logits[0, :-1].log_softmax(-1)
        total += float(chances.gather(1, ids[0, 1:, None]).sum())
        words += len(re.split(r"\s+", text))  # as lm-eval counts them
    story = found["story"]
    assert story.value == pytest.approx(exp(-total / words), rel=1e-3)
    assert (story.metric, story.outcomes, story.higher_is_better) == ("word_perplexity", (), False)


def test_what_a_model_writes_is_compared_with_what_the_task_expects(
    bundled: Path, tasks: Path, own_tokenizer: PreTrainedTokenizerBase, found: dict[str, Ability]
) -> None:
    assert found["ending"].outcomes == (1.0,) * ITEMS
    base = measure(load(bundled / "base", torch.float32), own_tokenizer, prepare(Benchmarks(("ending",), (tasks,))))
    assert base["ending"].value < 1
    assert base["ending"].items == found["ending"].items


def test_solved_examples_and_a_limit_are_as_asked_and_what_is_cut_is_counted(
    tasks: Path, aligned: PreTrainedModel, own_tokenizer: PreTrainedTokenizerBase, found: dict[str, Ability]
) -> None:
    padding = own_tokenizer.padding_side
    asked = Benchmarks(("mmlu_two",), (tasks,), shots=5, limit=2)
    group = measure(aligned, own_tokenizer, prepare(asked))["mmlu_two"]
    assert (group.shots, group.count, group.truncated) == (5, 4, 16)
    assert group.items != found["mmlu_two"].items
    assert own_tokenizer.padding_side == padding


def test_every_task_whose_data_is_not_here_is_told_before_a_model_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    arc = Path(lm_eval.__file__).parent / "tasks" / "arc"
    with pytest.raises(InvalidInput, match="run once with a network") as caught:
        prepare(Benchmarks(("arc_easy", "arc_challenge"), (arc,)))
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["arc_easy", "arc_challenge"]


def test_a_task_is_not_asked_twice(tasks: Path) -> None:
    with pytest.raises(InvalidInput, match="name the group or the task, not both"):
        prepare(Benchmarks(("mmlu_two", f"two_{SUBJECTS[0]}"), (tasks,)))


def test_a_directory_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no such directory of task files"):
        prepare(Benchmarks(("mmlu",), (tmp_path / "nothing",)))


def test_without_lm_eval_the_way_to_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InvalidInput, match=r"pip install 'caq\[harness\]'"):
        prepare(Benchmarks(("mmlu",)))


@pytest.mark.slow  # lm-eval reads its 14,000 task files, twice.
def test_the_names_and_metrics_of_the_conventions_are_lm_eval_s_and_an_unknown_name_gets_the_nearest() -> None:
    from lm_eval.tasks import TaskManager

    index = TaskManager().task_index
    for name, convention in CONVENTIONS.items():
        config = index[name].cfg
        assert config is not None
        assert convention.metric in json.dumps(config.get("metric_list", config.get("aggregate_metric_list"))), name
    with pytest.raises(InvalidInput) as caught:
        prepare(Benchmarks(("zero-shot", "mmlu", "arc_esay", "qqqqqqqq")))
    assert len(caught.value.problems) == 2
    assert "arc_easy" in caught.value.problems[0]
    assert "lm_eval ls tasks" in caught.value.problems[1]
