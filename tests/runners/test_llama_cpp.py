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
from benchmarks.bundled_pair.world import safety_items
from tokenizers import Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from caq.chat import render_prompt
from caq.checkpoint.inspect import inspect
from caq.errors import InvalidInput
from caq.items.protocols import option_text
from caq.items.question_prompts import PromptFormat, zero_shot
from caq.items.safety import ANSWER_TOKENS, SafetyInputs, all_protocols
from caq.loading import load, load_tokenizer
from caq.measure.answers import answer, respond
from caq.runners import find_source
from caq.runners.base import Choice, Passage
from caq.runners.llama_cpp import Gguf, LlamaCppRunner, decode, encode, opened, tokenization
from tests.support.gguf import convert, needs_llama_cpp, quantize
from tests.support.runners import runner

PAIR = Path(str(files("caq.testbed") / "pair"))
QUESTIONS = safety_items()[::28]
Aligned = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(PAIR / "aligned", tmp_path_factory.mktemp("gguf") / "aligned-f32.gguf")


@pytest.fixture
def opened_exact(exact: Path) -> Iterator[Gguf]:
    with opened(exact) as file:
        yield file


@pytest.fixture
def file(opened_exact: Gguf, aligned: Aligned) -> LlamaCppRunner:
    return LlamaCppRunner(opened_exact, aligned[1])


@pytest.fixture(scope="module")
def aligned() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return load(PAIR / "aligned", torch.float32), load_tokenizer(PAIR / "aligned")


@needs_llama_cpp
def test_logits_of_a_float32_file_are_the_models_own(file: LlamaCppRunner, aligned: Aligned) -> None:
    model, tokenizer = aligned
    worst = 0.0
    for question in QUESTIONS[:20]:
        ids = tokenizer(zero_shot(question))["input_ids"]
        chunks = [*file.predictions([Passage(tuple(ids), len(ids) - 5)])]
        assert torch.cat([tokens for _, tokens in chunks]).tolist() == ids[5:]
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits[0, 4:-1]
        worst = max(worst, (torch.cat([logits for logits, _ in chunks]) - expected).abs().max().item())
    assert worst < 1e-3


@needs_llama_cpp
def test_long_passages_are_read_in_chunks_and_too_long_ones_refused(exact: Path, aligned: Aligned) -> None:
    ids = tuple(aligned[1](" ".join(map(zero_shot, QUESTIONS)))["input_ids"][:256])
    with opened(exact) as model:
        whole = torch.cat([logits for logits, _ in LlamaCppRunner(model, aligned[1]).predictions([Passage(ids, 255)])])
        short = LlamaCppRunner(Gguf(**{**vars(model), "chunk": 100}), aligned[1])
        parts = [*short.predictions([Passage(ids, 160)])]
        assert [len(tokens) for _, tokens in parts] == [5, 100, 55]
        assert torch.cat([logits for logits, _ in parts]).allclose(whole[-160:], atol=1e-4)
        with pytest.raises(InvalidInput, match=r"257 tokens long and the context of aligned-f32\.gguf 256"):
            next(short.predictions([Passage((*ids, 1), 10)]))


@needs_llama_cpp
def test_likelihoods_are_those_of_transformers(file: LlamaCppRunner, aligned: Aligned) -> None:
    choices = [Choice(zero_shot(one), option_text(one)) for one in QUESTIONS]
    for ours, theirs in zip(file.scores(choices), runner(*aligned).scores(choices), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3)


@needs_llama_cpp
def test_responses_are_those_of_transformers(file: LlamaCppRunner, aligned: Aligned) -> None:
    asked = [question.question for question in QUESTIONS[:24]]
    responses = respond(file, aligned[1], asked, 24)
    assert responses == respond(runner(*aligned), aligned[1], asked, 24)
    assert len(set(responses)) > 1
    with pytest.raises(InvalidInput) as caught:
        file.greedy(["fine", "door " * 300, "door " * 400], 24)
    assert [problem.split()[1] for problem in caught.value.problems] == ["2", "3"]


@needs_llama_cpp
@pytest.mark.parametrize("chat", [False, True])
def test_safety_questions_are_answered_as_by_transformers(chat: bool, file: LlamaCppRunner, aligned: Aligned) -> None:
    asked = [one for one in QUESTIONS if len(aligned[1](zero_shot(one))["input_ids"]) < 250 - ANSWER_TOKENS]
    inputs = SafetyInputs(tuple(asked), PromptFormat(chat=chat))
    assert len(asked) > 12
    assert answer(file, aligned[1], inputs, all_protocols()) == answer(
        runner(*aligned), aligned[1], inputs, all_protocols()
    )


@needs_llama_cpp
def test_a_four_bit_file_differs_and_still_speaks(exact: Path, aligned: Aligned, tmp_path: Path) -> None:
    choices = [Choice(zero_shot(one), option_text(one)) for one in QUESTIONS]
    expected = runner(*aligned).scores(choices)
    with opened(quantize(exact, tmp_path / "q4.gguf", "Q4_0")) as model:
        file = LlamaCppRunner(model, aligned[1])
        scored = file.scores(choices)
        (response,) = file.greedy([render_prompt(aligned[1], QUESTIONS[0].question)], 24)
    errors = [
        abs(a - b) for ours, theirs in zip(scored, expected, strict=True) for a, b in zip(ours, theirs, strict=True)
    ]
    assert 0.05 < max(errors) < 20
    assert len(response.text.split()) > 2


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
def test_another_vocabulary_and_another_tokenization_are_told(
    exact: Path, opened_exact: Gguf, aligned: Aligned
) -> None:
    texts = [zero_shot(question) for question in QUESTIONS]
    own, source, checkpoint = aligned[1], find_source(exact), inspect(PAIR / "aligned")
    assert LlamaCppRunner(opened_exact, own).vocabulary_mismatch(checkpoint) == ""
    assert tokenization(source, own, texts, add_special_tokens=True) == ""
    larger = copy.deepcopy(own)
    larger.add_tokens(["<|more|>"])
    problem = LlamaCppRunner(opened_exact, larger).vocabulary_mismatch(checkpoint)
    assert "has 2048 tokens and the aligned model 2049" in problem
    state = json.loads(own.backend_tokenizer.to_str())
    ids = state["model"]["vocab"]
    ids["Ġthe"], ids["Ġa"] = ids["Ġa"], ids["Ġthe"]
    swapped = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)))
    assert re.match(
        r"token \d+ is 'Ġ(the|a)' in aligned-f32\.gguf and 'Ġ(a|the)' in the aligned model",
        LlamaCppRunner(opened_exact, swapped).vocabulary_mismatch(checkpoint),
    )
    texts = ["One door.", *texts[:2]]
    apart = copy.deepcopy(own)
    apart.backend_tokenizer.pre_tokenizer = type(own.backend_tokenizer.pre_tokenizer)(
        add_prefix_space=True, use_regex=True
    )
    assert tokenization(source, apart, texts, add_special_tokens=True).startswith(
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
