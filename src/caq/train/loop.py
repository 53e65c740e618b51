"""Learning the transforms: one forward and backward of the student a micro-batch, the teachers read from the cache.

The loss is taken in chunks of tokens. Each chunk's logits live only until its gradient with respect to the final hidden
states is known, and those gradients go back through the blocks once: a sequence of 2,048 tokens over 128k words would
otherwise hold several GB of logits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from caq.errors import Diverged
from caq.files.sealed import SealedFile
from caq.ledger import Entry
from caq.objectives import Objective
from caq.progress import progress
from caq.recipe import TrainingRecipe
from caq.student import BlockCalls, Student, block_calls, hidden_states, logits
from caq.train.state import FitState, load_state, save_state
from caq.train.teacher import CHUNK, TeacherCache
from caq.transforms.apply import operators
from caq.transforms.rotation import Rotation

#: The pull term may rise this far above its lowest value before learning is called diverging.
RISING = 1.5
#: Evaluations in a row with a rising pull term after which learning stops.
STRIKES = 3


@dataclass(frozen=True)
class FitResult:
    """What learning found.

    Attributes:
        parameters: of the step that was kept, by transform, float32.
        best_step: the step that was kept; 0 is the start.
        history: one record per evaluation on the validation sequences: step, total, pull and push if any.
        entries: departures for the ledger.
    """

    parameters: dict[str, Tensor]
    best_step: int
    history: tuple[dict[str, float], ...]
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class _Lesson:
    """What does not change during a fit."""

    student: Student
    objective: Objective
    teacher: TeacherCache
    ids: Int[Tensor, "samples length"]
    calls: BlockCalls
    settings: TrainingRecipe


def fit(
    student: Student,
    objective: Objective,
    teacher: TeacherCache,
    ids: Int[Tensor, "samples length"],
    settings: TrainingRecipe,
    *,
    seed: int,
    state_file: SealedFile | None = None,
    quiet: bool = False,
) -> FitResult:
    """Learn the plan's parameters under `objective`.

    The last `validation_samples` sequences are kept from learning; the best step is the one with the lowest pull term
    on them. The loss would not do: a contrastive one is unbounded below, and falls for a model that leaves the aligned
    one. With `keep: last`, the paper's way, learning goes on to the last step however far the pull term rises.

    Args:
        student: the transformed model with quantization in it.
        objective: the loss.
        teacher: its targets on `ids`.
        ids: calibration tokens.
        settings: steps, batch and learning rates.
        seed: decides the order of the sequences.
        state_file: where the state is kept, so that a stopped fit goes on; None keeps none.
        quiet: show no progress.

    Raises:
        Diverged: no evaluated step is better than the start, or the loss is not a number and the last step was asked
            for.
    """
    device = student.bound.embedding.weight.device
    # One sequence's masks and positions broadcast over micro-batches of every size.
    lesson = _Lesson(student, objective, teacher, ids, block_calls(student.bound, ids[:1].to(device)), settings)
    state = (load_state(state_file, student.plan.initial(), device) if state_file else None) or _start(lesson)
    optimizer = _optimizer(student, state.parameters, settings)
    if state.optimizer:
        optimizer.load_state_dict(state.optimizer)
    with progress(f"fit: {type(objective).__name__}", settings.steps - state.step, quiet=quiet) as advance:
        while state.step < settings.steps and not state.stopped:
            state = _advance(lesson, state, optimizer, seed)
            if state_file and (state.step % settings.evaluate_every == 0 or state.stopped):
                save_state(state, optimizer, state_file)
            advance()
    return _result(state, settings)


def _start(lesson: _Lesson) -> FitState:
    device = lesson.student.bound.embedding.weight.device
    parameters = {name: start.to(device).requires_grad_() for name, start in lesson.student.plan.initial().items()}
    record = {"step": 0.0, **_evaluate(lesson, parameters)}
    best = {name: value.detach().clone() for name, value in parameters.items()}
    return FitState(step=0, parameters=parameters, best=best, best_step=0, history=(record,))


def _optimizer(student: Student, parameters: Mapping[str, Tensor], settings: TrainingRecipe) -> torch.optim.Adam:
    rotations = [p for name, p in parameters.items() if isinstance(student.plan.transforms[name], Rotation)]
    scalings = [p for name, p in parameters.items() if not isinstance(student.plan.transforms[name], Rotation)]
    groups = [
        {"params": rotations, "lr": settings.rotation_learning_rate},
        {"params": scalings, "lr": settings.scaling_learning_rate},
    ]
    return torch.optim.Adam([group for group in groups if group["params"]])


def _advance(lesson: _Lesson, state: FitState, optimizer: torch.optim.Adam, seed: int) -> FitState:
    """Take one step; on evaluation steps, judge it."""
    settings, step = lesson.settings, state.step + 1
    optimizer.zero_grad()
    total = _accumulate(lesson, state.parameters, _batch(lesson, step, seed))
    if not math.isfinite(total):
        return state.stop(
            step,
            Entry(
                "fit",
                "loss-not-finite",
                f"step {step}: the loss is {total}; went back to step {state.best_step}",
                {"step": step, "best_step": state.best_step},
            ),
        )
    torch.nn.utils.clip_grad_norm_(state.parameters.values(), settings.gradient_clip)
    # Linear decay to zero: the last step is the smallest.
    _scaled_step(optimizer, 1 - (step - 1) / settings.steps)
    if step % settings.evaluate_every and step != settings.steps:
        return state.at(step)
    return judge(state.at(step), {"step": float(step), **_evaluate(lesson, state.parameters)}, settings)


def _scaled_step(optimizer: torch.optim.Adam, factor: float) -> None:
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] *= factor
    optimizer.step()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def judge(state: FitState, record: dict[str, float], settings: TrainingRecipe) -> FitState:
    """Take an evaluation into account: keep the step if it is to be kept, stop if the pull term keeps rising."""
    step, pull = state.step, record["pull"]
    history = (*state.history, record)
    if not math.isfinite(record["total"]):
        entry = Entry(
            "fit",
            "loss-not-finite",
            f"step {step}: the validation loss is {record['total']}; went back to step {state.best_step}",
            {"step": step, "best_step": state.best_step},
        )
        return state.recorded(history).stop(step, entry)
    if settings.keep == "last" or pull < state.history_at(state.best_step)["pull"]:
        return state.recorded(history).keep_best(strikes=0)
    lowest = min(past["pull"] for past in history)
    strikes = state.strikes + 1 if pull > RISING * lowest else 0
    if strikes < STRIKES:
        return state.recorded(history).with_strikes(strikes)
    entry = Entry(
        "fit",
        "pull-rising",
        f"step {step}: the pull term rose to {pull:.4g} from {lowest:.4g}; went back to step {state.best_step}",
        {"step": step, "pull": pull, "lowest": lowest, "best_step": state.best_step},
    )
    return state.recorded(history).stop(step, entry)


def _result(state: FitState, settings: TrainingRecipe) -> FitResult:
    if state.best_step == 0 or (settings.keep == "last" and state.stopped):
        found = "found no step better than the start" if settings.keep == "best" else "did not come to its last step"
        reasons = "".join(f"; {entry.message}" for entry in state.entries)
        raise Diverged(
            f"learning {found} (validation history: {list(state.history)}){reasons}; "
            "lower training.rotation_learning_rate and training.scaling_learning_rate, or objective.alpha"
        )
    parameters = {name: value.detach().cpu() for name, value in state.best.items()}
    return FitResult(parameters, state.best_step, state.history, state.entries)


def _batch(lesson: _Lesson, step: int, seed: int) -> list[int]:
    """Return step's sequences: a permutation per epoch, a function of seed and step alone, so that fits resume."""
    samples = len(lesson.ids) - lesson.settings.validation_samples
    first = (step - 1) * lesson.settings.batch_size
    return [
        _shuffled(samples, seed, position // samples)[position % samples]
        for position in range(first, first + lesson.settings.batch_size)
    ]


def _shuffled(samples: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(samples, generator=generator).tolist()


def _accumulate(lesson: _Lesson, parameters: Mapping[str, Tensor], batch: list[int]) -> float:
    """Add the gradient of the mean loss over `batch`; return that loss."""
    total = 0.0
    micro_batches = list(_micro_batches(batch, lesson.settings.micro_batch_size))
    for samples in micro_batches:
        hidden = _student_hidden(lesson, parameters, samples)
        leaf = hidden.detach().requires_grad_()
        parts = _chunked_loss(lesson, leaf, samples, len(micro_batches), backward=True)
        hidden.backward(leaf.grad)
        total += parts["total"] / len(micro_batches)
    return total


@torch.no_grad()
def _evaluate(lesson: _Lesson, parameters: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the mean loss and its parts on the validation sequences."""
    samples = list(range(len(lesson.ids) - lesson.settings.validation_samples, len(lesson.ids)))
    micro_batches = list(_micro_batches(samples, lesson.settings.micro_batch_size))
    sums: dict[str, float] = {}
    for micro_batch in micro_batches:
        hidden = _student_hidden(lesson, parameters, micro_batch)
        for name, value in _chunked_loss(lesson, hidden, micro_batch, 1, backward=False).items():
            sums[name] = sums.get(name, 0.0) + value * len(micro_batch) / len(samples)
    return sums


def _micro_batches(samples: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(samples), size):
        yield samples[start : start + size]


def _student_hidden(
    lesson: _Lesson, parameters: Mapping[str, Tensor], samples: list[int]
) -> Float[Tensor, "batch length hidden"]:
    student = lesson.student
    ids = lesson.ids[samples].to(student.bound.embedding.weight.device)
    return hidden_states(student, ids, operators(student.plan, parameters), lesson.calls)


def _chunked_loss(
    lesson: _Lesson,
    hidden: Float[Tensor, "batch length hidden"],
    samples: list[int],
    divisor: int,
    *,
    backward: bool,
) -> dict[str, float]:
    """Return the tokens' mean loss and parts; `backward` leaves the gradient over `divisor` in `hidden.grad`."""
    kept = [lesson.teacher.read(sample) for sample in samples]
    rows = {name: torch.cat([one[name] for one in kept]).to(hidden.device) for name in kept[0]}
    flat = hidden.flatten(0, 1)
    sums: dict[str, Tensor] = {}
    for start in range(0, len(flat), CHUNK):
        targets = lesson.teacher.expand({name: row[start : start + CHUNK] for name, row in rows.items()})
        loss = lesson.objective(logits(lesson.student, flat[start : start + CHUNK]), targets)
        share = len(flat[start : start + CHUNK]) / len(flat)
        if backward:
            (loss.total * (share / divisor)).backward(retain_graph=start + CHUNK < len(flat))
        for name, value in {"total": loss.total, **loss.parts}.items():
            sums[name] = sums.get(name, 0) + value.detach() * share
    return {name: value.item() for name, value in sums.items()}
