"""Perplexity and distances position by position, against a direct computation in float64 and torch's own KL."""

from __future__ import annotations

import copy
import math
import os
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from torch.nn.functional import kl_div
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caq.errors import InvalidInput
from caq.measure.distances import EDGES, exp_mean, read_passages, summarise, windows_of
from caq.measure.record import Distances
from caq.runners import states
from caq.runners.base import Passage
from caq.runners.reference import HEAD, Reference, is_saved, open_reference, save_reference
from tests.support.runners import runner
from tests.support.tiny import tiny_model

IDS = torch.randint(0, 64, (6, 12), generator=torch.Generator().manual_seed(0))
WINDOWS = windows_of(IDS.flatten().tolist(), 12)
#: As prompts with a few response tokens behind them: lengths and counts differ.
#: Passages are in tokens already.
NO_TOKENIZER = cast(PreTrainedTokenizerBase, None)
CHATS = tuple(Passage(tuple(row[: 6 + index].tolist()), 1 + index % 3) for index, row in enumerate(IDS))


@pytest.fixture(scope="module")
def pair() -> tuple[PreTrainedModel, PreTrainedModel]:
    """A model and one near it."""
    model = tiny_model("llama", dtype=torch.float32)
    near = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    for weight in near.parameters():
        weight.data += 0.02 * torch.randn(weight.shape, generator=generator)
    return model, near


def counted(passages: tuple[Passage, ...]) -> int:
    return sum(passage.counted for passage in passages)


def kept(model: PreTrainedModel, passages: tuple[Passage, ...], directory: Path, tokens: int = 48) -> Reference:
    save_reference(runner(model, NO_TOKENIZER, tokens=tokens), passages, directory, "text")
    return open_reference(directory, "text")


def measured(
    model: PreTrainedModel, passages: tuple[Passage, ...], reference: Reference, tokens: int = 48
) -> Distances:
    return read_passages(runner(model, NO_TOKENIZER, tokens=tokens), passages, [reference])[1][0]


def perplexity(model: PreTrainedModel, passages: tuple[Passage, ...], tokens: int = 48) -> float:
    return read_passages(runner(model, NO_TOKENIZER, tokens=tokens), passages, [])[0]


@torch.no_grad()
def direct(ours: PreTrainedModel, theirs: PreTrainedModel, passages: tuple[Passage, ...]) -> dict[str, np.ndarray]:
    """Compute every position from whole float64 logits, one passage and one token at a time."""
    found: dict[str, list[float]] = {"kl": [], "same": [], "delta": [], "squared": [], "nll": []}
    ours, theirs = copy.deepcopy(ours).double(), copy.deepcopy(theirs).double()
    for passage in passages:
        ids = torch.tensor([passage.ids])
        own, reference = (model(ids).logits[0] for model in (ours, theirs))
        q, p = own.log_softmax(-1), reference.log_softmax(-1)
        for end in range(len(passage.ids) - passage.counted, len(passage.ids)):
            found["kl"].append(kl_div(q[end - 1], p[end - 1], log_target=True, reduction="sum").item())
            found["same"].append(float(q[end - 1].argmax() == p[end - 1].argmax()))
            found["delta"].append((q[end - 1, ids[0, end]].exp() - p[end - 1, ids[0, end]].exp()).item())
            found["squared"].append((own[end - 1] - reference[end - 1]).square().mean().item())
            found["nll"].append(-q[end - 1, ids[0, end]].item())
    return {name: np.array(values) for name, values in found.items()}


@pytest.mark.parametrize("passages", [WINDOWS, CHATS])
def test_every_number_is_that_of_the_direct_computation(
    pair: tuple[PreTrainedModel, PreTrainedModel], passages: tuple[Passage, ...], tmp_path: Path
) -> None:
    model, near = pair
    expected = direct(near, model, passages)
    found = measured(near, passages, kept(model, passages, tmp_path))
    assert found.positions == counted(passages) == expected["kl"].size
    assert 0 < expected["same"].mean() <= 1
    assert found.mean == pytest.approx(expected["kl"].mean(), rel=1e-4)
    assert found.standard_error == pytest.approx(expected["kl"].std(ddof=1) / expected["kl"].size ** 0.5, rel=1e-3)
    for name, share in {"median": 50, "p90": 90, "p95": 95, "p99": 99, "p999": 99.9, "maximum": 100}.items():
        assert getattr(found, name) == pytest.approx(np.percentile(expected["kl"], share), rel=1e-3)
    assert found.same_top == expected["same"].mean()
    assert found.delta_p_mean == pytest.approx(expected["delta"].mean(), rel=1e-3)
    assert found.delta_p_rms == pytest.approx((expected["delta"] ** 2).mean() ** 0.5, rel=1e-3)
    assert found.logit_mse == pytest.approx(expected["squared"].mean(), rel=1e-4)
    assert found.histogram.counts == tuple(np.histogram(expected["kl"], EDGES)[0])
    assert perplexity(near, passages) == pytest.approx(math.exp(expected["nll"].mean()), rel=1e-5)


def test_the_reference_stands_in_front(pair: tuple[PreTrainedModel, PreTrainedModel], tmp_path: Path) -> None:
    model, near = pair
    there, back = direct(near, model, WINDOWS)["kl"].mean(), direct(model, near, WINDOWS)["kl"].mean()
    assert abs(there - back) > 1e-3 * there
    assert measured(model, WINDOWS, kept(near, WINDOWS, tmp_path)).mean == pytest.approx(back, rel=1e-4)


def test_a_model_is_at_no_distance_at_all_from_itself(
    pair: tuple[PreTrainedModel, PreTrainedModel], tmp_path: Path
) -> None:
    found = measured(pair[0], CHATS, kept(pair[0], CHATS, tmp_path))
    assert (found.mean, found.maximum, found.same_top, found.delta_p_rms, found.logit_mse) == (0, 0, 1, 0, 0)
    assert found.histogram.counts[0] == found.positions


def test_batches_and_chunks_change_nothing(
    pair: tuple[PreTrainedModel, PreTrainedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, near = pair
    expected = measured(near, CHATS, kept(model, CHATS, tmp_path / "a", 96), 96)
    monkeypatch.setattr(states, "CHUNK_ELEMENTS", 3 * 64)
    found = measured(near, CHATS, kept(model, CHATS, tmp_path / "b", 1), 1)
    assert found.mean == pytest.approx(expected.mean, rel=1e-4)
    assert found.histogram == expected.histogram


def test_neither_batches_nor_chunks_change_perplexity(
    pair: tuple[PreTrainedModel, PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = perplexity(pair[0], WINDOWS, 96)
    monkeypatch.setattr(states, "CHUNK_ELEMENTS", 7 * 64)
    assert perplexity(pair[0], WINDOWS, 1) == pytest.approx(expected, rel=1e-6)


def test_a_broken_model_has_no_perplexity_and_a_very_bad_one_an_infinite_one(
    pair: tuple[PreTrainedModel, PreTrainedModel],
) -> None:
    broken = copy.deepcopy(pair[0])
    with torch.no_grad():
        broken.get_output_embeddings().weight[3] = math.nan
    with pytest.raises(InvalidInput, match="not numbers"):
        perplexity(broken, WINDOWS)
    assert exp_mean(1000.0, 1) == math.inf


def test_the_last_partial_window_is_dropped_and_the_first_token_is_context_only() -> None:
    assert windows_of(range(11), 4) == (Passage((0, 1, 2, 3), 3), Passage((4, 5, 6, 7), 3))


@pytest.mark.parametrize(("tokens", "window", "problem"), [(3, 4, "fewer than a window"), (3, 1, "predicts nothing")])
def test_a_text_without_a_window_is_refused(tokens: int, window: int, problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem):
        windows_of(range(tokens), window)


def test_a_reference_is_kept_in_its_own_dtype_and_not_run_again(
    pair: tuple[PreTrainedModel, PreTrainedModel], tmp_path: Path
) -> None:
    model = tiny_model("llama", dtype=torch.bfloat16)
    first = kept(model, WINDOWS, tmp_path)
    assert first.states.dtype == torch.bfloat16
    assert (tmp_path / "text.bin").stat().st_size == counted(WINDOWS) * 48 * 2
    assert kept(pair[1], WINDOWS, tmp_path).states.equal(first.states)
    # Half a file is no reference.
    (tmp_path / "text.json").unlink()
    assert not kept(pair[1], WINDOWS, tmp_path).states.float().equal(first.states.float())
    assert open_reference(tmp_path, "text").states.dtype == torch.float32


@pytest.mark.parametrize("file", ["text.bin", HEAD])
def test_a_reference_that_was_cut_off_is_not_read_and_made_again(
    file: str, pair: tuple[PreTrainedModel, PreTrainedModel], tmp_path: Path
) -> None:
    whole = kept(pair[0], WINDOWS, tmp_path).states.clone()
    os.truncate(tmp_path / file, 20)
    with pytest.raises((RuntimeError, SafetensorError)):
        open_reference(tmp_path, "text")
    # A run that was stopped while it made the file again leaves none that passes for whole.
    outside = (*WINDOWS[:-1], Passage((10**6, *WINDOWS[-1].ids[1:]), WINDOWS[-1].counted))
    with pytest.raises(IndexError):
        kept(pair[0], outside, tmp_path)
    assert not is_saved(tmp_path, "text")
    assert kept(pair[0], WINDOWS, tmp_path).states.equal(whole)


def test_what_is_beyond_the_last_edge_is_in_the_last_bin_and_nan_is_an_error() -> None:
    ones = np.ones(3)
    assert summarise(np.array([0, 5e-7, 1e6]), ones, ones, ones).histogram.counts[:: len(EDGES) - 2] == (2, 1)
    assert summarise(np.array([1.0]), ones[:1], ones[:1], ones[:1]).standard_error == 0
    with pytest.raises(InvalidInput, match="NaN"):
        summarise(np.array([0, np.nan]), ones[:2], ones[:2], ones[:2])
