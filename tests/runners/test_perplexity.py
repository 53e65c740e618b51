"""Perplexity by the WikiText-2 convention, against a loop that reads one token after another."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from caq.runners.perplexity import exp_mean, perplexity, read_tokens
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caq.errors import InvalidInput
from caq.runners import states

IDS = torch.randint(0, 300, (75,), generator=torch.Generator().manual_seed(0))
WINDOW = 16


@torch.no_grad()
def naive(model: PreTrainedModel, ids: Tensor, window: int) -> float:
    """Score every token but a window's first from the window's tokens before it, in float64."""
    wide = copy.deepcopy(model).double()
    losses = []
    for start in range(0, len(ids) - window + 1, window):
        for position in range(start + 1, start + window):
            log_prob = wide(ids[None, start:position]).logits[0, -1].log_softmax(-1)
            losses.append(-log_prob[ids[position]].item())
    return math.exp(sum(losses) / len(losses))


def test_perplexity_equals_a_loop_over_single_tokens(model: PreTrainedModel) -> None:
    assert perplexity(model, IDS, WINDOW, batch_size=3) == pytest.approx(naive(model, IDS, WINDOW), rel=1e-5)


def test_the_tokens_after_the_last_whole_window_do_not_count(model: PreTrainedModel) -> None:
    whole = IDS[: len(IDS) // WINDOW * WINDOW]
    assert len(whole) < len(IDS)
    assert perplexity(model, IDS, WINDOW, 4) == perplexity(model, whole, WINDOW, 4)


def test_neither_the_batch_nor_the_chunks_of_logits_change_perplexity(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = perplexity(model, IDS, WINDOW, batch_size=4)
    monkeypatch.setattr(states, "CHUNK_ELEMENTS", 7 * model.config.vocab_size)
    assert perplexity(model, IDS, WINDOW, batch_size=1) == pytest.approx(expected, rel=1e-6)


def test_the_text_is_tokenized_once_and_as_it_is(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    text = " How do I\r\n\n bake bread \n"
    (tmp_path / "text.txt").write_bytes(text.encode())
    assert read_tokens(tmp_path / "text.txt", tokenizer).tolist() == tokenizer(text)["input_ids"]


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff\xfe"], ids=["missing", "empty", "blank", "not UTF-8"])
def test_a_file_without_text_is_refused_by_name(
    content: bytes | None, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidInput, match=r"text\.txt"):
        read_tokens(path, tokenizer)


def test_a_broken_model_has_no_perplexity_and_a_very_bad_one_an_infinite_one(model: PreTrainedModel) -> None:
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.get_output_embeddings().weight[3] = math.nan
    with pytest.raises(InvalidInput, match="not numbers"):
        perplexity(broken, IDS, WINDOW, 4)
    assert exp_mean(1000.0, 1) == math.inf
