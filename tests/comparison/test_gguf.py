"""A GGUF file as a model to judge: the same measures as of the Transformers model that it was made from."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caq.comparison import gguf
from caq.comparison.distances import Passage, Reference, keep_reference, read_passages, windows_as_passages
from caq.evaluate.gguf import opened
from caq.evaluate.perplexity import perplexity
from caq.evaluate.prompts import PromptFormat
from caq.evaluate.refusal import generate
from caq.evaluate.safety import DEFAULT_PROTOCOLS, SafetyInputs, answer_safety
from caq.evaluate.states import inference, windows_of
from caq.loading import load, load_tokenizer
from caq.testbed.world import safety_items
from tests.gguf import convert, needs_llama_cpp, quantize

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
        return keep_reference(cut, passages, 8, tmp_path_factory.mktemp("reference"))


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


def test_a_texts_windows_and_their_perplexity_are_the_models_own(exact: Path, aligned: Aligned, text: Path) -> None:
    ids = torch.tensor(aligned[1](text.read_text(encoding="utf-8"))["input_ids"])
    with opened(exact) as model:
        windows = gguf.own_windows(model, text, 64)
        found, _ = gguf.read_passages(model, windows_as_passages(windows), [])
    assert windows.equal(windows_of(ids, 64))
    assert found == pytest.approx(perplexity(aligned[0], ids, 64, 4), rel=1e-5)


def test_questions_and_prompts_are_answered_as_the_model_answers_them(exact: Path, aligned: Aligned) -> None:
    inputs = SafetyInputs(QUESTIONS, PromptFormat())
    asked = [question.question for question in QUESTIONS[:12]]
    with opened(exact) as model:
        safety = gguf.answer_safety(model, aligned[1], inputs, DEFAULT_PROTOCOLS)
        chosen = gguf.choose_facts(model, aligned[1], QUESTIONS)
        responses = gguf.respond(model, aligned[1], asked, 80)
        facts = gguf.facts(model)
    expected = answer_safety(*aligned, inputs, DEFAULT_PROTOCOLS, 16)
    assert safety == expected
    assert chosen == tuple(answer.chosen for answer in expected["option-text"])
    assert tuple(said for said, _ in responses) == generate(*aligned, asked, 80, 8)
    assert any(tokens[-1] == aligned[1].eos_token_id for _, tokens in responses)
    assert facts["format"].endswith("F32")
    assert len(facts["sha256"]) == 64
