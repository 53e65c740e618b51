"""The gradient of a step: that of the whole batch at once, however it is cut up and whoever computes it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed
from torch.multiprocessing.spawn import spawn

from caq.objectives import Objective
from caq.objectives.full import KullbackLeibler
from caq.objectives.restricted import ContrastiveAlignment, TopKullbackLeibler
from caq.student import Student
from caq.train import EndToEnd, FitInputs, loop
from caq.world import World
from tests.support.learning import IDS, OPTIONS, Course, make_student, teach

BATCH = [5, 0, 3, 2]
OBJECTIVES: dict[str, Objective] = {
    "kl-top": TopKullbackLeibler(pull_k=20),
    "kl": KullbackLeibler(),
    "cal": ContrastiveAlignment(pull_k=20, push_k=10),
}


def leaves(inputs: FitInputs, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {name: value.to(dtype).requires_grad_() for name, value in inputs.student.plan.start({}).items()}


def gradients(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the gradients, zeros where none arrived: whole keys never meet the transforms that act on them."""
    return {name: torch.zeros_like(one) if one.grad is None else one.grad for name, one in parameters.items()}


def plain_gradients(course: Course, student: Student, weights: Tensor | None = None) -> tuple[float, dict[str, Tensor]]:
    """All logits of the whole batch at once, one backward pass, no checkpointing by hand."""
    inputs = course.inputs(student)
    parameters = leaves(inputs)
    hidden = student.final_hidden_states(IDS[BATCH], parameters, inputs.arguments)
    kept = [course.teacher.read(sample) for sample in BATCH]
    rows = {name: torch.cat([sequence[name] for sequence in kept]) for name in kept[0]}
    loss = course.objective(student.logits(hidden).flatten(0, 1), course.teacher.expand(rows), 0.5)
    total = (loss.total if weights is None else weights[BATCH].flatten() * loss.total).mean()
    total.backward()
    return total.item(), gradients(parameters)


@pytest.mark.parametrize("chunk", [7, 256])
@pytest.mark.parametrize("micro", [1, 2, 4])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_chunks_and_micro_batches_give_the_whole_batch_s_gradient(
    name: str, micro: int, chunk: int, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = OBJECTIVES[name]
    course = Course(teach(tmp_path_factory.getbasetemp() / "gradients", objective), objective)
    # Some of the cases weigh their tokens.
    weights = 2 * torch.rand(IDS.shape, generator=torch.Generator().manual_seed(1)) if micro == 2 else None
    # Half of them leave the model's weights whole, and go through activations.
    student = make_student() if chunk == 7 else replace(make_student(), weight_format=None)
    expected_loss, expected = plain_gradients(course, student, weights)
    monkeypatch.setattr(loop, "CHUNK", chunk)
    inputs = course.inputs(student, weights=weights)
    parameters = leaves(inputs)
    loss = loop.accumulate(EndToEnd(batch_size=4, micro_batch_size=micro), inputs, parameters, BATCH, 0.5)
    measured = gradients(parameters)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    # Keys are not quantized here, so that the query-key scaling's gradient is zero but for rounding.
    rounding = 1e-6 * max(float(gradient.norm()) for gradient in expected.values())
    for key, gradient in measured.items():
        assert float((gradient - expected[key]).norm()) < 1e-3 * float(expected[key].norm()) + rounding, key


def one_process_s_share(rank: int, size: int, directory: Path) -> None:
    """Teach, take one batch's gradient and learn three steps, as one process of `size`; save what comes out."""
    if size > 1:
        distributed.init_process_group("gloo", f"file://{directory}/rendezvous", rank=rank, world_size=size)
    world, objective = World(rank, size), OBJECTIVES["cal"]
    course = Course(teach(directory / "cache", objective, world), objective)
    inputs = course.inputs(make_student(dtype=torch.float64), world=world)
    parameters = leaves(inputs, torch.float64)
    # The last sequence makes shares unequal, and validation has one sequence for two processes.
    options = OPTIONS.model_copy(update={"micro_batch_size": 1, "validation_samples": 1, "steps": 3})
    loss = loop.accumulate(options, inputs, parameters, [*BATCH, 7], 0.5)
    result = options.learn(inputs, {name: value.detach() for name, value in parameters.items()})
    saved = {"loss": loss, "gradients": gradients(parameters), "history": result.history}
    torch.save(saved | {"parameters": result.parameters}, directory / f"{rank}.pt")
    if size > 1:
        distributed.destroy_process_group()


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir()
    together.mkdir()
    one_process_s_share(0, 1, alone)
    spawn(one_process_s_share, (2, together), nprocs=2)
    expected = torch.load(alone / "0.pt")
    both = [torch.load(together / f"{rank}.pt") for rank in (0, 1)]
    files = [sorted(path.relative_to(place) for path in place.rglob("*.safetensors")) for place in (alone, together)]
    assert files[0] == files[1]
    for measured in both:
        assert measured["loss"] == pytest.approx(expected["loss"], rel=1e-12)
        assert [record.keys() for record in measured["history"]] == [record.keys() for record in expected["history"]]
        # Adam makes steps of gradients that are zero but for rounding, which no two orders of a sum share.
        for kind, tolerance in (("gradients", 1e-12), ("parameters", 1e-9)):
            for name, value in measured[kind].items():
                assert float((value - expected[kind][name]).abs().max()) < tolerance, (kind, name)
    assert all(torch.equal(value, both[1]["parameters"][name]) for name, value in both[0]["parameters"].items())
