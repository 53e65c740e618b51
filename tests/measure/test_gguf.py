"""A GGUF file as a model to judge: the same measures as of the Transformers model that it was made from."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from caq.measure.refusal import generate
from caq.runners.distances import Passage, Reference, keep_reference, read_passages, windows_as_passages
from caq.runners.gguf import GgufEngine
from caq.runners.perplexity import perplexity
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caq.checkpoint.inspect import inspect
from caq.comparison import compare, redraw
from caq.errors import InvalidInput
from caq.items.question_prompts import PromptFormat
from caq.items.safety import DEFAULT_PROTOCOLS, SafetyInputs, SafetyTask, answer_safety
from caq.items.tasks import Tasks
from caq.loading import load, load_tokenizer
from caq.runners import gguf
from caq.runners.llama_cpp import opened
from caq.runners.states import inference, windows_of
from caq.testbed.export import export
from caq.testbed.world import safety_items
from tests.reproduce.shrunk import shrink
from tests.support.gguf import convert, needs_llama_cpp, quantize

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
    ids = torch.tensor(aligned[1](text.read_text(encoding="utf-8"))["input_ids"])
    windows = windows_of(ids, 64)
    chats = [Passage(tuple(row[: 40 + index].tolist()), 1 + index % 8) for index, row in enumerate(windows[:10])]
    return (*windows_as_passages(windows), *chats)


@pytest.fixture(scope="module")
def reference(aligned: Aligned, passages: tuple[Passage, ...], tmp_path_factory: pytest.TempPathFactory) -> Reference:
    with inference(aligned[0]) as cut:
        return keep_reference(cut, passages, 8, tmp_path_factory.mktemp("reference"), "text")


def test_a_float32_file_is_at_no_distance_from_its_model(
    exact: Path, aligned: Aligned, passages: tuple[Passage, ...], reference: Reference
) -> None:
    with opened(exact) as model:
        found, (distances,) = gguf.read_passages(model, passages, [reference])
    with inference(aligned[0]) as cut:
        expected, (own,) = read_passages(cut, passages, [reference], 8)
    assert found == pytest.approx(expected, rel=1e-5)
    assert distances.positions == own.positions > 500
    assert distances.maximum < 1e-6
    assert distances.same_top > 0.999


def test_a_four_bit_file_is_at_a_distance(
    exact: Path, passages: tuple[Passage, ...], reference: Reference, tmp_path: Path
) -> None:
    with opened(quantize(exact, tmp_path / "q4.gguf", "Q4_0")) as model:
        _, (distances,) = gguf.read_passages(model, passages, [reference])
    assert 1e-3 < distances.mean < 1
    assert distances.median < distances.p90 < distances.p99 < distances.maximum
    assert 0.5 < distances.same_top < 1


def engine(path: Path, aligned: Aligned, text: Path) -> AbstractContextManager[gguf.GgufEngine]:
    return gguf.running(path, aligned[1], Tasks(text, window=64, max_new_tokens=80))


def test_a_texts_windows_and_their_perplexity_are_the_models_own(exact: Path, aligned: Aligned, text: Path) -> None:
    ids = torch.tensor(aligned[1](text.read_text(encoding="utf-8"))["input_ids"])
    with engine(exact, aligned, text) as model:
        windows = model.windows(text)
        found, _ = model.read(windows_as_passages(windows), [], 1)
        with pytest.raises(InvalidInput, match="nothing is measured from a GGUF file"):
            model.leave_states([], 1, text, "text")
    assert windows.equal(windows_of(ids, 64))
    assert found == pytest.approx(perplexity(aligned[0], ids, 64, 4), rel=1e-5)


def test_questions_and_prompts_are_answered_as_the_model_answers_them(
    exact: Path, aligned: Aligned, text: Path
) -> None:
    inputs = SafetyInputs(QUESTIONS, PromptFormat())
    asked = [question.question for question in QUESTIONS[:12]]
    with engine(exact, aligned, text) as model:
        safety = model.answer(inputs, DEFAULT_PROTOCOLS)
        chosen = model.choose(QUESTIONS)
        responses = model.respond(asked)
    expected = answer_safety(*aligned, inputs, DEFAULT_PROTOCOLS, 16)
    assert safety == expected
    assert chosen == tuple(answer.chosen for answer in expected["option-text"])
    assert tuple(one.text for one in responses) == generate(*aligned, asked, 80, 8)
    assert any(one.tokens[-1] == aligned[1].eos_token_id for one in responses)


def test_a_file_of_another_vocabulary_is_a_stranger(exact: Path, aligned: Aligned, text: Path) -> None:
    aligned = inspect(PAIR / "aligned")
    with engine(exact, aligned, text) as model:
        assert model.stranger(aligned) == ""
        larger = replace(aligned, config={**aligned.config, "vocab_size": 2056})
        assert model.stranger(larger).startswith("2048 tokens, and 2056 in the aligned model: ")
        fewer = GgufEngine(replace(model.model, vocabulary=2000), aligned[1], model.tasks)
        assert "has 2000 tokens and the aligned model 2048: their distributions" in fewer.stranger(
            replace(aligned, config={"vocab_size": 2000})
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
