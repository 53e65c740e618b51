"""GGUF files through llama.cpp against the same model through Transformers: likelihoods, responses, logits."""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from caq.measure.refusal import generate
from tokenizers import Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from caq.chat import render_chat
from caq.errors import InvalidInput
from caq.items.protocols import option_text
from caq.items.question_prompts import PromptFormat, zero_shot
from caq.items.safety import ALL_PROTOCOLS, ANSWER_TOKENS, SafetyInputs, answer_by, answer_safety
from caq.loading import load, load_tokenizer
from caq.runners.likelihood import Choice
from caq.runners.likelihood import scores as transformers_scores
from caq.runners.llama_cpp import (
    Gguf,
    decode,
    encode,
    greedy,
    opened,
    predictions,
    scores,
    tokenization_problem,
    vocabulary_problem,
)
from caq.testbed.world import safety_items
from tests.support.gguf import convert, needs_llama_cpp, quantize

PAIR = Path(str(files("caq.testbed") / "pair"))
QUESTIONS = safety_items()[::28]


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(PAIR / "aligned", tmp_path_factory.mktemp("gguf") / "aligned-f32.gguf")


@pytest.fixture
def opened_exact(exact: Path) -> Iterator[Gguf]:
    with opened(exact) as found:
        yield found


@pytest.fixture(scope="module")
def aligned() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return load(PAIR / "aligned", torch.float32), load_tokenizer(PAIR / "aligned")


Aligned = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@needs_llama_cpp
def test_logits_of_a_float32_file_are_the_models_own(opened_exact: Gguf, aligned: Aligned) -> None:
    model, tokenizer = aligned
    worst = 0.0
    for question in QUESTIONS[:20]:
        ids = tokenizer(zero_shot(question))["input_ids"]
        counted = len(ids) - 5
        found = [*predictions(opened_exact, ids, counted)]
        assert [token for _, tokens in found for token in tokens] == ids[5:]
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits[0, 4:-1]
        worst = max(worst, (torch.cat([logits for logits, _ in found]) - expected).abs().max().item())
    assert worst < 1e-3


@needs_llama_cpp
def test_long_passages_are_read_in_chunks_and_too_long_ones_refused(exact: Path, aligned: Aligned) -> None:
    ids = (aligned[1](" ".join(map(zero_shot, QUESTIONS)))["input_ids"])[:256]
    with opened(exact) as model:
        whole = torch.cat([logits for logits, _ in predictions(model, ids, 255)])
        parts = [*predictions(Gguf(**{**vars(model), "chunk": 100}), ids, 160)]
        assert [len(tokens) for _, tokens in parts] == [5, 100, 55]
        assert torch.cat([logits for logits, _ in parts]).allclose(whole[-160:], atol=1e-4)
        with pytest.raises(InvalidInput, match=r"257 tokens long and the context of aligned-f32\.gguf 256"):
            next(predictions(model, [*ids, 1], 10))


@needs_llama_cpp
def test_likelihoods_are_those_of_transformers(opened_exact: Gguf, aligned: Aligned) -> None:
    choices = [Choice(zero_shot(one), option_text(one)) for one in QUESTIONS]
    expected = transformers_scores(*aligned, choices, 16)
    for found, known in zip(scores(opened_exact, choices), expected, strict=True):
        assert found == pytest.approx(known, abs=1e-3)


@needs_llama_cpp
def test_responses_are_those_of_transformers(opened_exact: Gguf, aligned: Aligned) -> None:
    asked = [question.question for question in QUESTIONS[:24]]
    texts = [render_chat(aligned[1], [{"role": "user", "content": text}], answer=True) for text in asked]
    found = greedy(opened_exact, texts, 24, add_special_tokens=False)
    assert found == generate(*aligned, asked, 24, 8)
    assert len(set(found)) > 1
    with pytest.raises(InvalidInput) as caught:
        greedy(opened_exact, ["fine", "door " * 300, "door " * 400], 24, add_special_tokens=False)
    assert [problem.split()[1] for problem in caught.value.problems] == ["2", "3"]


@needs_llama_cpp
@pytest.mark.parametrize("chat", [False, True])
def test_safety_questions_are_answered_as_by_transformers(chat: bool, opened_exact: Gguf, aligned: Aligned) -> None:
    asked = [one for one in QUESTIONS if len(aligned[1](zero_shot(one))["input_ids"]) < 250 - ANSWER_TOKENS]
    inputs = SafetyInputs(tuple(asked), PromptFormat(chat=chat))
    found = answer_by(
        lambda choices: scores(opened_exact, choices, add_special_tokens=not chat),
        lambda texts: greedy(opened_exact, texts, ANSWER_TOKENS, add_special_tokens=not chat),
        aligned[1],
        inputs,
        ALL_PROTOCOLS,
    )
    assert len(asked) > 12
    assert found == answer_safety(*aligned, inputs, ALL_PROTOCOLS, 8)


@needs_llama_cpp
def test_a_four_bit_file_differs_and_still_speaks(exact: Path, aligned: Aligned, tmp_path: Path) -> None:
    choices = [Choice(zero_shot(one), option_text(one)) for one in QUESTIONS]
    expected = transformers_scores(*aligned, choices, 16)
    with opened(quantize(exact, tmp_path / "q4.gguf", "Q4_0")) as model:
        found = scores(model, choices)
        text = render_chat(aligned[1], [{"role": "user", "content": QUESTIONS[0].question}], answer=True)
        (response,) = greedy(model, [text], 24, add_special_tokens=False)
    errors = [
        abs(a - b) for ours, theirs in zip(found, expected, strict=True) for a, b in zip(ours, theirs, strict=True)
    ]
    assert 0.05 < max(errors) < 20
    assert len(response.split()) > 2


@needs_llama_cpp
def test_texts_come_back_and_special_tokens_do_not(opened_exact: Gguf, aligned: Aligned) -> None:
    for text in ("Is it 你好?", " a  b\n\n", "x" * 60, ""):
        (ids,) = encode(opened_exact, [text], add_special_tokens=False)
        assert list(ids) == aligned[1](text, add_special_tokens=False)["input_ids"]
        assert decode(opened_exact, ids) == text
    (ids,) = encode(opened_exact, ["<|user|>Is it?<|end|>"], add_special_tokens=False)
    assert decode(opened_exact, ids) == "Is it?"
    (ids,) = encode(opened_exact, ["é"], add_special_tokens=False)
    assert decode(opened_exact, ids[:1]) == "\ufffd"


@needs_llama_cpp
def test_another_vocabulary_and_another_tokenization_are_told(opened_exact: Gguf, aligned: Aligned) -> None:
    texts = [zero_shot(question) for question in QUESTIONS]
    own = aligned[1]
    assert vocabulary_problem(opened_exact, own) == ""
    assert tokenization_problem(opened_exact, own, texts, add_special_tokens=True) == ""
    larger = copy.deepcopy(own)
    larger.add_tokens(["<|more|>"])
    assert "has 2048 tokens and the aligned model 2049" in vocabulary_problem(opened_exact, larger)
    state = json.loads(own.backend_tokenizer.to_str())
    ids = state["model"]["vocab"]
    ids["Ġthe"], ids["Ġa"] = ids["Ġa"], ids["Ġthe"]
    swapped = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)))
    assert re.fullmatch(
        r"token \d+ is 'Ġ(the|a)' in aligned-f32\.gguf and 'Ġ(a|the)' in the aligned model",
        vocabulary_problem(opened_exact, swapped),
    )
    texts = ["One door.", *texts[:2]]
    apart = copy.deepcopy(own)
    apart.backend_tokenizer.pre_tokenizer = type(own.backend_tokenizer.pre_tokenizer)(
        add_prefix_space=True, use_regex=True
    )
    problem = tokenization_problem(opened_exact, apart, texts, add_special_tokens=True)
    assert problem.startswith(
        "aligned-f32.gguf tokenizes 3 of 3 texts otherwise than the aligned model, such as 'One d"
    )


@needs_llama_cpp
def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"not a model")
    with (
        pytest.raises(InvalidInput, match=r"bad\.gguf: llama\.cpp does not load it .*; give a whole GGUF file"),
        opened(tmp_path / "bad.gguf"),
    ):
        pass


def test_without_the_engine_the_way_out_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(InvalidInput, match=r"pip install 'caq\[gguf\]'"), opened(tmp_path / "any.gguf"):
        pass
