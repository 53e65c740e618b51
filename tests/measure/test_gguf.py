"""A GGUF file as a model to judge: the same measures as of the Transformers model that it was made from."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from benchmarks.bundled_pair.world import safety_items
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caq.checkpoint.inspect import inspect
from caq.comparison import compare, redraw
from caq.errors import InvalidInput
from caq.evaluation import evaluate
from caq.items.question_prompts import PromptFormat
from caq.items.safety import DEFAULT_PROTOCOLS, SafetyInputs, SafetyTask
from caq.items.tasks import Tasks
from caq.loading import load, load_tokenizer
from caq.measure.answers import answer, choose_facts, respond
from caq.measure.distances import read_passages, windows_of
from caq.runners import find_source, runner_module
from caq.runners.base import Passage, Runner, Running
from caq.runners.llama_cpp import LlamaCppRunner
from caq.runners.reference import Reference, open_reference, save_reference
from caq.testbed.export import export
from tests.reproduce.shrunk import shrink
from tests.support.gguf import convert, needs_llama_cpp, quantize
from tests.support.runners import runner

PAIR = Path(str(files("caq.testbed") / "pair"))
QUESTIONS = tuple(safety_items()[::28])
pytestmark = needs_llama_cpp
Aligned = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@pytest.fixture(scope="module")
def aligned() -> Aligned:
    return load(PAIR / "aligned", torch.float32), load_tokenizer(PAIR / "aligned")


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(PAIR / "aligned", tmp_path_factory.mktemp("gguf") / "aligned-f32.gguf")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(question.question for question in QUESTIONS), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def passages(aligned: Aligned, text: Path) -> tuple[Passage, ...]:
    """Windows of a text, and chats with a few response tokens behind them."""
    windows = windows_of(aligned[1](text.read_text(encoding="utf-8"))["input_ids"], 64)
    chats = [Passage(window.ids[: 40 + index], 1 + index % 8) for index, window in enumerate(windows[:10])]
    return (*windows, *chats)


@pytest.fixture(scope="module")
def reference(aligned: Aligned, passages: tuple[Passage, ...], tmp_path_factory: pytest.TempPathFactory) -> Reference:
    directory = tmp_path_factory.mktemp("reference")
    save_reference(runner(*aligned), passages, directory, "text")
    return open_reference(directory, "text")


def running(path: Path, aligned: Aligned) -> AbstractContextManager[Runner]:
    source = find_source(path)
    return runner_module(source.runner).running(source, aligned[1], Running(torch.device("cpu")))


def test_a_float32_file_is_at_no_distance_from_its_model(
    exact: Path, aligned: Aligned, passages: tuple[Passage, ...], reference: Reference
) -> None:
    with running(exact, aligned) as file:
        perplexity, (distances,) = read_passages(file, passages, [reference])
    expected, (own,) = read_passages(runner(*aligned), passages, [reference])
    assert perplexity == pytest.approx(expected, rel=1e-5)
    assert distances.positions == own.positions > 500
    assert distances.maximum < 1e-6
    assert distances.same_top > 0.999


def test_a_four_bit_file_is_at_a_distance(
    exact: Path, aligned: Aligned, passages: tuple[Passage, ...], reference: Reference, tmp_path: Path
) -> None:
    with running(quantize(exact, tmp_path / "q4.gguf", "Q4_0"), aligned) as file:
        _, (distances,) = read_passages(file, passages, [reference])
    assert 1e-3 < distances.mean < 1
    assert distances.median < distances.p90 < distances.p99 < distances.maximum
    assert 0.5 < distances.same_top < 1


def test_a_text_has_the_models_own_tokens(exact: Path, aligned: Aligned, text: Path) -> None:
    words = text.read_text(encoding="utf-8")
    with running(exact, aligned) as file:
        assert list(file.encode(words)) == aligned[1](words)["input_ids"]


def test_questions_and_prompts_are_answered_as_the_model_answers_them(exact: Path, aligned: Aligned) -> None:
    inputs = SafetyInputs(QUESTIONS, PromptFormat())
    asked = [question.question for question in QUESTIONS[:12]]
    with running(exact, aligned) as file:
        safety = answer(file, aligned[1], inputs, DEFAULT_PROTOCOLS)
        chosen = choose_facts(file, aligned[1], QUESTIONS)
        responses = respond(file, aligned[1], asked, 80)
    own = runner(*aligned)
    assert safety == answer(own, aligned[1], inputs, DEFAULT_PROTOCOLS)
    assert chosen == tuple(given.chosen for given in safety["option-text"])
    assert responses == respond(own, aligned[1], asked, 80)
    assert any(response.tokens[-1] == aligned[1].eos_token_id for response in responses)


def test_a_file_of_another_vocabulary_is_told_from_the_aligned_models(exact: Path, aligned: Aligned) -> None:
    checkpoint = inspect(PAIR / "aligned")
    with running(exact, aligned) as file:
        assert isinstance(file, LlamaCppRunner)
        assert file.vocabulary_mismatch(checkpoint) == ""
        larger = replace(checkpoint, config={**checkpoint.config, "vocab_size": 2056})
        assert file.vocabulary_mismatch(larger).startswith("2048 tokens, and 2056 in the aligned model: ")
        fewer = LlamaCppRunner(replace(file.model, vocabulary=2000), aligned[1])
        assert "has 2000 tokens and the aligned model 2048: their distributions" in fewer.vocabulary_mismatch(
            replace(checkpoint, config={"vocab_size": 2000})
        )


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pair with its items, shortened."""
    directory = tmp_path_factory.mktemp("exported")
    export(directory)
    shrink(directory)
    return directory


def test_files_are_compared_from_end_to_end(exact: Path, exported: Path, tmp_path: Path) -> None:
    four = quantize(exact, tmp_path / "aligned-q4_0.gguf", "Q4_0")
    lines: list[str] = []
    tasks = Tasks(
        exported / "heldout.txt",
        SafetyTask(exported / "safety.jsonl"),
        exported / "facts.jsonl",
        exported / "prompts.jsonl",
        window=128,
    )
    report = compare(
        [exact, four],
        reference=exported / "aligned",
        base=exported / "base",
        tasks=tasks,
        output=tmp_path / "report",
        quiet=True,
        say=lines.append,
    )
    arms = {arm.name: arm for arm in report.arms}
    assert list(arms) == ["aligned", "base", "aligned-f32.gguf", "aligned-q4_0.gguf"]
    same, lossy = arms["aligned-f32.gguf"], arms["aligned-q4_0.gguf"]
    assert sum("the prompts have the aligned model's tokens" in line for line in lines) == 2
    assert same.outcomes == arms["aligned"].outcomes
    assert same.perplexity == pytest.approx(arms["aligned"].perplexity, rel=1e-5)
    for distances in (same.kl_text, same.kl_chat):
        assert distances is not None
        assert distances.maximum < 1e-6
    for distances in (lossy.kl_text, lossy.kl_chat, lossy.kl_base_text, lossy.kl_base_chat):
        assert distances is not None
        assert distances.mean > 1e-4
    assert lossy.kl_base_chat is not None
    assert lossy.kl_chat is not None
    assert lossy.kl_base_chat.mean > lossy.kl_chat.mean
    assert not lossy.unmeasured
    assert lossy.provenance["quantization"] == "GGUF, Q4_0"
    assert lossy.provenance["computed"].startswith("by llama-cpp-python ")
    again = redraw(tmp_path / "report")
    assert again == report


def test_a_file_is_evaluated_as_it_is_compared(exact: Path, exported: Path, tmp_path: Path) -> None:
    tasks = Tasks(exported / "heldout.txt", None, exported / "facts.jsonl", window=128)
    report = evaluate(exact, exported / "aligned", None, tasks, tmp_path / "out", device="cpu", quiet=True)
    aligned, file = report.arms
    assert file.perplexity == pytest.approx(aligned.perplexity, rel=1e-5)
    assert file.outcomes == aligned.outcomes
    with pytest.raises(InvalidInput, match="aligned model's chat template"):
        evaluate(exact, None, None, tasks, device="cpu", quiet=True)
