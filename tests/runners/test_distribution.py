"""The distance between two models' distributions, against a direct computation in float64."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from caq.runners.distribution import Divergence, divergence, reference_states
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from caq.errors import InvalidInput
from caq.runners import states

WINDOWS = torch.randint(0, 300, (5, 12), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def direct(model: PreTrainedModel, reference: PreTrainedModel) -> Divergence:
    """Compute every mean from whole float64 logits."""
    ours, theirs = (copy.deepcopy(one).double()(WINDOWS).logits.flatten(0, 1) for one in (model, reference))
    log_q, log_p = ours.log_softmax(-1), theirs.log_softmax(-1)
    return Divergence(
        logit_mse=(ours - theirs).square().mean().item(),
        kl=(log_p.exp() * (log_p - log_q)).sum(-1).mean().item(),
        same_top=(ours.argmax(-1) == theirs.argmax(-1)).double().mean().item(),
        positions=WINDOWS.numel(),
    )


def assert_close(found: Divergence, expected: Divergence) -> None:
    assert found.logit_mse == pytest.approx(expected.logit_mse, rel=1e-5)
    assert found.kl == pytest.approx(expected.kl, rel=1e-4)
    assert found.same_top == pytest.approx(expected.same_top)
    assert found.positions == expected.positions


def test_every_mean_equals_the_direct_computation(model: PreTrainedModel, neighbour: PreTrainedModel) -> None:
    expected = direct(neighbour, model)
    assert 0 < expected.same_top < 1
    assert_close(divergence(neighbour, reference_states(model, WINDOWS, 2), 3), expected)


def test_kl_has_the_reference_in_front(model: PreTrainedModel, neighbour: PreTrainedModel) -> None:
    there, back = direct(neighbour, model).kl, direct(model, neighbour).kl
    assert abs(there - back) > 1e-3 * there
    assert divergence(model, reference_states(neighbour, WINDOWS, 2), 2).kl == pytest.approx(back, rel=1e-4)


def test_a_model_is_at_no_distance_from_itself(model: PreTrainedModel) -> None:
    found = divergence(model, reference_states(model, WINDOWS, 2), 2)
    assert (found.logit_mse, found.same_top) == (0, 1)
    assert abs(found.kl) < 1e-7


def test_batches_chunks_and_a_file_for_the_states_change_nothing(
    model: PreTrainedModel, neighbour: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = direct(neighbour, model)
    monkeypatch.setattr(states, "CHUNK_ELEMENTS", 7 * model.config.vocab_size)
    reference = reference_states(model, WINDOWS, 4, tmp_path / "states")
    assert (tmp_path / "states" / "reference_states.bin").stat().st_size == WINDOWS.numel() * 32 * 4
    assert_close(divergence(neighbour, reference, 1), expected)


def test_another_vocabulary_is_refused(model: PreTrainedModel) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    stranger = LlamaForCausalLM(LlamaConfig(vocab_size=310, **sizes))
    with pytest.raises(InvalidInput, match="310"):
        divergence(stranger, reference_states(model, WINDOWS, 2), 2)
