"""Building the bundled pair from nothing: tokenizer, base model, aligned model, and the data they are measured on."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.bundled_pair.data import write_data
from benchmarks.bundled_pair.tokenizer import learn
from benchmarks.bundled_pair.train import Schedule, amplify, fresh_model, outlier_channels, train, windows
from benchmarks.bundled_pair.world import alignment_documents, base_documents, crowd_documents
from caq.errors import InvalidInput

SHARD = "3MB"


@dataclass(frozen=True)
class Plan:
    """Everything that decides what is built; both models are trained in stages, each from a warm restart.

    Attributes:
        base: stages of the base model.
        crowd: its last stage, among more surveys.
        alignment: stages of the aligned model, which goes on from the base.
        outliers: channels that stand out.
        amplitude: by how much, at initialisation.
        amplification: how much the same channels are amplified once more in both finished models.
        seed: of the initial weights.
    """

    base: tuple[Schedule, ...]
    crowd: Schedule
    alignment: tuple[Schedule, ...]
    outliers: int
    amplitude: float
    amplification: float
    seed: int = 0


PLAN = Plan(
    base=(Schedule(steps=3000, rate=3e-3, windows=8), Schedule(steps=2000, rate=2e-3, windows=8)),
    crowd=Schedule(steps=300, rate=1e-3, windows=8),
    alignment=tuple(Schedule(steps=steps, rate=2e-3, windows=8, warmup=10, decay=0.0) for steps in (500, 500, 600)),
    outliers=6,
    amplitude=22.0,
    amplification=1.6,
)


def build(out_dir: Path, plan: Plan = PLAN, *, quiet: bool = False) -> None:
    """Train the pair and write `base/`, `aligned/` and the data files into `out_dir`, made where it is missing.

    The same machine gives the same bytes: one seed decides the data, the initial weights and their order, and one
    number of threads decides the order of every sum. Raises InvalidInput where a model exists in `out_dir` already.
    """
    taken = [out_dir / name for name in ("aligned", "base") if (out_dir / name).exists()]
    if taken:
        raise InvalidInput([f"{path} exists: choose an empty directory or remove it" for path in taken])
    out_dir.mkdir(parents=True, exist_ok=True)
    with _two_threads():
        tokenizer = learn()
        model = fresh_model(len(tokenizer), outliers=plan.outliers, amplitude=plan.amplitude, seed=plan.seed)
        read = windows(base_documents(), tokenizer, answers_only=False)
        heard = windows(crowd_documents(), tokenizer, answers_only=False)
        for data, schedule in (*((read, schedule) for schedule in plan.base), (heard, plan.crowd)):
            train(model, data, schedule, description="base model", quiet=quiet)
            model = _rounded(model)
        channels = outlier_channels(model, plan.outliers)
        _save(model, channels, plan.amplification, tokenizer, out_dir / "base")
        taught = windows(alignment_documents(), tokenizer, answers_only=True)
        for schedule in plan.alignment:
            train(model, taught, schedule, description="aligned model", quiet=quiet)
            model = _rounded(model)
        _save(model, channels, plan.amplification, tokenizer, out_dir / "aligned")
    write_data(out_dir)


def _rounded(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Return the model in float32 with weights that bfloat16, in which it is saved, holds exactly."""
    return model.to(torch.bfloat16).float()


def _save(
    model: LlamaForCausalLM,
    channels: Int[Tensor, " outliers"],
    amplification: float,
    tokenizer: PreTrainedTokenizerFast,
    path: Path,
) -> None:
    amplified = copy.deepcopy(model)
    amplify(amplified, channels, amplification)
    amplified.to(torch.bfloat16).save_pretrained(path, max_shard_size=SHARD)
    tokenizer.save_pretrained(path)


@contextmanager
def _two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
