"""Distances position by position, against a direct computation in float64 and torch's own KL."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from caq.runners.distances import (
    EDGES,
    Passage,
    Reference,
    counted,
    keep_reference,
    open_reference,
    read_passages,
    summarise,
    windows_as_passages,
)
from caq.runners.perplexity import perplexity
from torch.nn.functional import kl_div
from transformers import PreTrainedModel

from caq.errors import InvalidInput
from caq.measure.record import Distances
from caq.runners import states
from caq.runners.states import inference
from tests.support.tiny import tiny_model

IDS = torch.randint(0, 64, (6, 12), generator=torch.Generator().manual_seed(0))
WINDOWS = windows_as_passages(IDS)
#: As prompts with a few response tokens behind them: lengths and counts differ.
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


def kept(model: PreTrainedModel, passages: tuple[Passage, ...], directory: Path, batch_size: int = 4) -> Reference:
    with inference(model) as cut:
        return keep_reference(cut, passages, batch_size, directory, "text")


def measured(
    model: PreTrainedModel, passages: tuple[Passage, ...], reference: Reference, batch_size: int = 4
) -> Distances:
    with inference(model) as cut:
        return read_passages(cut, passages, [reference], batch_size)[1][0]


@torch.no_grad()
def direct(ours: PreTrainedModel, theirs: PreTrainedModel, passages: tuple[Passage, ...]) -> dict[str, np.ndarray]:
    """Compute every position from whole float64 logits, one passage and one token at a time."""
    found: dict[str, list[float]] = {"kl": [], "same": [], "delta": []}
    ours, theirs = copy.deepcopy(ours).double(), copy.deepcopy(theirs).double()
    for passage in passages:
        ids = torch.tensor([passage.ids])
        q, p = (model(ids).logits[0].log_softmax(-1) for model in (ours, theirs))
        for end in range(len(passage.ids) - passage.counted, len(passage.ids)):
            found["kl"].append(kl_div(q[end - 1], p[end - 1], log_target=True, reduction="sum").item())
            found["same"].append(float(q[end - 1].argmax() == p[end - 1].argmax()))
            found["delta"].append((q[end - 1, ids[0, end]].exp() - p[end - 1, ids[0, end]].exp()).item())
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
    assert found.histogram.counts == tuple(np.histogram(expected["kl"], EDGES)[0])


def test_the_reference_stands_in_front(pair: tuple[PreTrainedModel, PreTrainedModel], tmp_path: Path) -> None:
    model, near = pair
    there, back = direct(near, model, WINDOWS)["kl"].mean(), direct(model, near, WINDOWS)["kl"].mean()
    assert abs(there - back) > 1e-3 * there
    assert measured(model, WINDOWS, kept(near, WINDOWS, tmp_path)).mean == pytest.approx(back, rel=1e-4)


def test_a_model_is_at_no_distance_at_all_from_itself(
    pair: tuple[PreTrainedModel, PreTrainedModel], tmp_path: Path
) -> None:
    found = measured(pair[0], CHATS, kept(pair[0], CHATS, tmp_path))
    assert (found.mean, found.maximum, found.same_top, found.delta_p_rms) == (0, 0, 1, 0)
    assert found.histogram.counts[0] == found.positions


def test_batches_and_chunks_change_nothing(
    pair: tuple[PreTrainedModel, PreTrainedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, near = pair
    expected = measured(near, CHATS, kept(model, CHATS, tmp_path / "a", 6), 6)
    monkeypatch.setattr(states, "CHUNK_ELEMENTS", 3 * 64)
    found = measured(near, CHATS, kept(model, CHATS, tmp_path / "b", 1), 1)
    assert found.mean == pytest.approx(expected.mean, rel=1e-4)
    assert found.histogram == expected.histogram


def test_the_perplexity_is_that_of_the_evaluation(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    with inference(pair[0]) as cut:
        found, none = read_passages(cut, WINDOWS, [], 4)
    assert none == ()
    assert found == pytest.approx(perplexity(pair[0], IDS.flatten(), 12, 4), rel=1e-6)


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


def test_what_is_beyond_the_last_edge_is_in_the_last_bin_and_nan_is_an_error() -> None:
    ones = np.ones(3)
    assert summarise(np.array([0, 5e-7, 1e6]), ones, ones).histogram.counts[:: len(EDGES) - 2] == (2, 1)
    assert summarise(np.array([1.0]), ones[:1], ones[:1]).standard_error == 0
    with pytest.raises(InvalidInput, match="NaN"):
        summarise(np.array([0, np.nan]), ones[:2], ones[:2])
