"""The loop of `end-to-end`: one forward and backward of the student a micro-batch, the teachers read from the cache.

The loss is taken in chunks of tokens. Each chunk's logits live only until its gradient with respect to the final hidden
states is known, and those gradients go back through the blocks once: a sequence of 2,048 tokens over 128k words would
otherwise hold several GB of logits.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from caq.errors import Diverged, first_line, is_out_of_memory
from caq.objectives import Objective
from caq.progress import progress, remark
from caq.student import final_hidden_states, logits
from caq.train.learner import FitInputs, FitResult
from caq.train.state import FitState, load_state, save_state
from caq.train.teacher import CHUNK
from caq.transforms.plan import Plan

if TYPE_CHECKING:
    from caq.train.end_to_end import EndToEnd

T = TypeVar("T")


class Rates(Protocol):
    """A learner's options for Adam."""

    @property
    def rotation_learning_rate(self) -> float:
        """For rotations."""

    @property
    def scaling_learning_rate(self) -> float:
        """For all other transforms."""


class Validation(Protocol):
    """A learner's options for looking at the validation sequences."""

    @property
    def validation_samples(self) -> int:
        """Sequences, the last ones."""

    @property
    def micro_batch_size(self) -> int:
        """Sequences per forward pass."""


#: The pull term may rise this far above its lowest value before learning is called diverging.
RISING = 1.5
#: Evaluations in a row with a rising pull term after which learning stops.
STRIKES = 3
#: What is recorded of an evaluation, as far as the objective has it.
TERMS = ("total", "pull", "push")


def fit(options: EndToEnd, inputs: FitInputs, start: Mapping[str, Tensor]) -> FitResult:
    """Learn from `start`, or from the saved state if there is one; see `EndToEnd.learn` for what is kept.

    Raises:
        Diverged: no evaluated step is better than the start, or the loss is not a number and the last step was asked
            for.
    """
    device, state_file = inputs.student.device, inputs.state_file
    saved = load_state(state_file, start, device) if state_file else None
    state = saved or _start(options, inputs, {name: value.to(device) for name, value in start.items()})
    optimizer = adam(inputs.student.plan, state.parameters, options)
    if state.optimizer:
        optimizer.load_state_dict(state.optimizer)
    with progress(f"learn: {inputs.objective.name}", options.steps - state.step, quiet=inputs.quiet) as advance:
        while state.step < options.steps and not state.stopped:
            state = _advance(options, inputs, state, optimizer)
            due = state.step % options.evaluate_every == 0 or state.step == options.steps or state.stopped
            if state_file and due and inputs.world.first:
                save_state(state, optimizer, state_file)
            advance()
    return _result(options, inputs.objective, state)


def _start(options: EndToEnd, inputs: FitInputs, start: Mapping[str, Tensor]) -> FitState:
    parameters = {name: value.detach().clone().requires_grad_() for name, value in start.items()}
    size = options.micro_batch_size
    state = FitState(step=0, micro_batch=size, parameters=parameters, best={}, best_step=0, history=())
    state, found = _in_memory(options, inputs, state, lambda sized: evaluate(sized, inputs, parameters, 0.0))
    return replace(state, history=({"step": 0.0, **found},)).keep_best()


def _in_memory(
    options: EndToEnd, inputs: FitInputs, state: FitState, compute: Callable[[EndToEnd], T]
) -> tuple[FitState, T]:
    """Compute under the options with the state's micro-batch, and with smaller ones for as long as memory runs out.

    Raises:
        Exception: memory runs out with one sequence; or several processes compute, of which the others would wait.
    """
    while True:
        try:
            return state, compute(options.model_copy(update={"micro_batch_size": state.micro_batch}))
        except Exception as error:  # every allocator has an error of its own
            if not is_out_of_memory(error) or state.micro_batch == 1 or inputs.world.size > 1:
                raise
            reason = first_line(error)
        # Here, and not above, where the error still holds what was computed.
        gc.collect()
        torch.cuda.empty_cache()
        state = state.halve(options.batch_size, reason)
        remark(state.entries[-1].message)


def adam(plan: Plan, parameters: Mapping[str, Tensor], options: Rates) -> torch.optim.Adam:
    """Return Adam on the parameters, rotations with a learning rate of their own."""
    rotations = [value for name, value in parameters.items() if plan.transforms[name].group == "rotation"]
    others = [value for name, value in parameters.items() if plan.transforms[name].group != "rotation"]
    groups = [
        {"params": rotations, "lr": options.rotation_learning_rate},
        {"params": others, "lr": options.scaling_learning_rate},
    ]
    return torch.optim.Adam([group for group in groups if group["params"]])


def _advance(options: EndToEnd, inputs: FitInputs, state: FitState, optimizer: torch.optim.Adam) -> FitState:
    """Take one step; on evaluation steps, judge it."""
    state = replace(state, step=state.step + 1)
    done = state.step / options.steps
    batch = _batch(options, inputs, state.step)

    def gradient(sized: EndToEnd) -> float:
        optimizer.zero_grad()
        return accumulate(sized, inputs, state.parameters, batch, done)

    state, total = _in_memory(options, inputs, state, gradient)
    if not math.isfinite(total):
        return state.stop("loss-not-finite", f"the loss is {total}", {})
    torch.nn.utils.clip_grad_norm_(state.parameters.values(), options.gradient_clip)
    # Linear decay to zero: the last step is the smallest.
    scaled_step(optimizer, 1 - (state.step - 1) / options.steps)
    if state.step % options.evaluate_every and state.step != options.steps:
        return state
    state, found = _in_memory(options, inputs, state, lambda sized: evaluate(sized, inputs, state.parameters, done))
    return judge(state, {"step": float(state.step), **found}, options)


def scaled_step(optimizer: torch.optim.Adam, factor: float) -> None:
    """Take a step with the learning rates times a factor."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] *= factor
    optimizer.step()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def judge(state: FitState, record: dict[str, float], options: EndToEnd) -> FitState:
    """Take an evaluation into account: keep the step if it is to be kept, stop if the pull term keeps rising."""
    pull, best_pull = record["pull"], state.history_at(state.best_step)["pull"]
    state = replace(state, history=(*state.history, record))
    if not math.isfinite(record["total"]):
        return state.stop("loss-not-finite", f"the validation loss is {record['total']}", {})
    if options.keep == "last" or pull < best_pull:
        return state.keep_best()
    lowest = min(past["pull"] for past in state.history)
    strikes = state.strikes + 1 if pull > RISING * lowest else 0
    if strikes < STRIKES:
        return replace(state, strikes=strikes)
    reason = f"the pull term rose to {pull:.4g} from {lowest:.4g}"
    return state.stop("pull-rising", reason, {"pull": pull, "lowest": lowest})


def _result(options: EndToEnd, objective: Objective, state: FitState) -> FitResult:
    if state.best_step == 0 or (options.keep == "last" and state.stopped):
        failed = "found no step better than the start" if options.keep == "best" else "did not reach its last step"
        reasons = "".join(f"; {entry.message}" for entry in state.entries)
        or_alpha = ", or objective.alpha" if hasattr(objective, "alpha") else ""
        raise Diverged(
            f"learning {failed} (validation history: {list(state.history)}){reasons}; lower "
            f"learn.{options.name}.rotation_learning_rate and learn.{options.name}.scaling_learning_rate{or_alpha}, "
            "and give --restart"
        )
    parameters = {name: value.detach().cpu() for name, value in state.best.items()}
    back = f"; went back to step {state.best_step}"
    stopped = [replace(entry, message=entry.message + back) for entry in state.entries[-1:] if state.stopped]
    entries = (*state.entries[: len(state.entries) - len(stopped)], *stopped)
    return FitResult(options.name, parameters, state.best_step, state.history, entries)


def _batch(options: EndToEnd, inputs: FitInputs, step: int) -> list[int]:
    """Return step's sequences: a permutation per epoch, a function of seed and step alone, so that fits resume."""
    samples = len(inputs.ids) - options.validation_samples
    first = (step - 1) * options.batch_size
    return [
        _shuffled(samples, inputs.seed, position // samples)[position % samples]
        for position in range(first, first + options.batch_size)
    ]


def _shuffled(samples: int, seed: int, epoch: int) -> list[int]:
    # The generator takes 64 bits.
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**64)
    return torch.randperm(samples, generator=generator).tolist()


def accumulate(
    options: EndToEnd, inputs: FitInputs, parameters: Mapping[str, Tensor], batch: Sequence[int], done: float
) -> float:
    """Add the gradient of the mean loss over `batch`, of all processes together; return that loss."""
    total = 0.0
    for samples in _micro_batches(inputs.world.share(batch), options.micro_batch_size):
        divisor = len(batch) / len(samples)
        hidden = _student_hidden(inputs, parameters, samples)
        leaf = hidden.detach().requires_grad_()
        terms = _chunked_loss(inputs, leaf, samples, done, divisor)
        hidden.backward(leaf.grad)
        total += terms["total"] / divisor
    for value in parameters.values():
        value.grad = inputs.world.sum(torch.zeros_like(value) if value.grad is None else value.grad)
    return inputs.world.sum(torch.tensor(total, dtype=torch.float64, device=inputs.student.device)).item()


@torch.no_grad()
def evaluate(options: Validation, inputs: FitInputs, parameters: Mapping[str, Tensor], done: float) -> dict[str, float]:
    """Return the mean loss and its terms on the validation sequences."""
    samples = range(len(inputs.ids) - options.validation_samples, len(inputs.ids))
    sums: dict[str, float] = {}
    for micro_batch in _micro_batches(inputs.world.share(samples), options.micro_batch_size):
        hidden = _student_hidden(inputs, parameters, micro_batch)
        for name, value in _chunked_loss(inputs, hidden, micro_batch, done).items():
            sums[name] = sums.get(name, 0.0) + value * len(micro_batch) / len(samples)
    own = torch.tensor([sums.get(name, 0.0) for name in TERMS], dtype=torch.float64, device=inputs.student.device)
    summed = dict(zip(TERMS, inputs.world.sum(own).tolist(), strict=True))
    # A process without a share learns from the others' sums which terms there are.
    return {name: value for name, value in summed.items() if name in sums or value}


def _micro_batches(samples: Sequence[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(samples), size):
        yield list(samples[start : start + size])


def _student_hidden(
    inputs: FitInputs, parameters: Mapping[str, Tensor], samples: list[int]
) -> Float[Tensor, "batch length hidden"]:
    student = inputs.student
    ids = inputs.ids[samples].to(student.device)
    return final_hidden_states(student, ids, student.plan.operators(parameters), inputs.arguments)


def _chunked_loss(
    inputs: FitInputs,
    hidden: Float[Tensor, "batch length hidden"],
    samples: list[int],
    done: float,
    divisor: float | None = None,
) -> dict[str, float]:
    """Return the tokens' mean loss and its terms; with a divisor, leave the gradient over it in `hidden.grad`."""
    teacher = inputs.teacher
    if teacher is None:
        raise ValueError("end-to-end learning needs the teachers' targets")
    kept = [teacher.read(sample) for sample in samples]
    rows = {name: torch.cat([sequence[name] for sequence in kept]).to(hidden.device) for name in kept[0]}
    flat = hidden.flatten(0, 1)
    sums: dict[str, Tensor] = {}
    for start in range(0, len(flat), CHUNK):
        targets = teacher.expand({name: row[start : start + CHUNK] for name, row in rows.items()})
        loss = inputs.objective(logits(inputs.student, flat[start : start + CHUNK]), targets, done)
        share = len(flat[start : start + CHUNK]) / len(flat)
        if divisor is not None:
            (loss.total * (share / divisor)).backward(retain_graph=start + CHUNK < len(flat))
        for name, value in loss.terms().items():
            sums[name] = sums.get(name, 0) + value * share
    return {name: value.item() for name, value in sums.items()}
