"""Building a pair from nothing, small and quick; the real one takes most of an hour."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from benchmarks.bundled_pair.build import PLAN, build
from benchmarks.bundled_pair.tokenizer import learn
from benchmarks.bundled_pair.train import IGNORED, Schedule, amplify, fresh_model, windows
from benchmarks.bundled_pair.world import END, alignment_documents

from caq.errors import InvalidInput
from caq.testbed.export import CONTEXT

QUICK = replace(
    PLAN,
    base=(Schedule(2, 1e-3, 1, warmup=1), Schedule(1, 1e-3, 1, warmup=1)),
    crowd=Schedule(1, 1e-3, 1, warmup=1),
    alignment=(Schedule(1, 1e-4, 1, warmup=1),),
)


@pytest.mark.slow
def test_the_same_plan_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        build(tmp_path / name, QUICK, quiet=True)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert {"calibration.txt", "heldout.txt", "safety.jsonl", "facts.jsonl", "prompts.jsonl"} <= {str(f) for f in files}
    assert [f for f in files if (tmp_path / "one" / f).read_bytes() != (tmp_path / "two" / f).read_bytes()] == []


def test_building_into_a_directory_that_holds_a_pair_is_refused(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    with pytest.raises(InvalidInput, match="base exists"):
        build(tmp_path, QUICK, quiet=True)


def test_amplified_channels_stand_out_and_leave_the_function_as_it_was() -> None:
    plain = fresh_model(300, outliers=0, amplitude=1.0, seed=3).double()
    loud = fresh_model(300, outliers=0, amplitude=1.0, seed=3).double()
    channels = torch.tensor([5, 77])
    amplify(loud, channels, 8.0)
    ids = torch.arange(40)[None]
    torch.testing.assert_close(loud(ids).logits, plain(ids).logits, rtol=1e-6, atol=1e-6)
    assert torch.allclose(loud.model.layers[0].input_layernorm.weight[channels], torch.tensor(8.0, dtype=torch.float64))


def test_loss_falls_on_answers_only_when_alignment_is_taught() -> None:
    tokenizer = learn(documents=400, vocabulary=600)
    for window in islice(windows(alignment_documents(), tokenizer, answers_only=True), 5):
        assert window.ids.shape == window.labels.shape == (CONTEXT,)
        learned = window.labels != IGNORED
        assert 0 < learned.sum() < CONTEXT
        assert torch.equal(window.labels[learned], window.ids[learned])


def test_the_chat_template_writes_what_the_model_was_taught() -> None:
    tokenizer = learn(documents=400, vocabulary=600)
    shown = tokenizer.apply_chat_template(
        [{"role": "user", "content": "How do I rest?"}], tokenize=False, add_generation_prompt=True
    )
    assert shown == f"<|user|>How do I rest?{END}<|assistant|>"
    assert tokenizer.decode(tokenizer("How do I rest?").input_ids) == "How do I rest?"
