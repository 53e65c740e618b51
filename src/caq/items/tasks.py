"""The whole evaluation of one model: what to measure, measuring it, and comparing two models item by item."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caq.errors import InvalidInput
from caq.items.floors import floors
from caq.items.protocols import PROTOCOLS, choose
from caq.items.questions import Question, read_questions
from caq.items.requests import Prompt, read_prompts
from caq.items.safety import SafetyInputs, SafetyTask, answer_safety, read_safety
from caq.measure.refusal import NO_TEMPLATE, Judge, judge, refusals
from caq.measure.results import PRIMARY_PROTOCOL, Answer, Results, answers
from caq.progress import progress
from caq.runners.distribution import Comparison, Divergence, ReferenceStates, reference_states
from caq.runners.perplexity import exp_mean, negative_log_likelihood, read_tokens
from caq.runners.states import inference, window_states, windows_of
from caq.statistics.resampling import Difference, mcnemar, paired_bootstrap

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class Tasks:
    """What to measure and how much at a time; a path that is None leaves its measure out.

    Attributes:
        perplexity_text: a text, by path or by name, for perplexity and for the distance to the reference.
        safety: questions in SafetyBench's fields, and how they are put.
        facts: questions in the same fields, scored by `option-text`.
        prompts: `prompt` and `harmful`, answered greedily through the chat template.
        window: tokens per window of the text; the field's tables use 2,048.
        max_new_tokens: length of a response; a refusal shows in its opening.
        windows_batch, questions_batch, prompts_batch: how many are computed together; they bound memory only.
    """

    perplexity_text: Path | None = None
    safety: SafetyTask | None = None
    facts: Path | None = None
    prompts: Path | None = None
    window: int = 2048
    max_new_tokens: int = 32
    windows_batch: int = 4
    questions_batch: int = 32
    prompts_batch: int = 64


@dataclass(frozen=True)
class Paired:
    """One rate of two models on the same items.

    Attributes:
        difference: ours minus the reference's, with its bootstrap interval.
        gained: items true for ours only, or scored higher.
        lost: items true for the reference only, or scored higher there.
        p: exact McNemar, two-sided; of scores that are not yes or no, the sign test, which is the same count.
        items: how many were compared.
    """

    difference: Difference
    gained: int
    lost: int
    p: float
    items: int


@dataclass(frozen=True)
class Inputs:
    """What the files of tasks hold; the windows are in the tokens of one tokenizer."""

    windows: Int[Tensor, "windows window"] | None
    safety: SafetyInputs | None
    facts: tuple[Question, ...]
    prompts: tuple[Prompt, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """What was found out about the files rather than given, in sentences."""
        return () if self.safety is None else self.safety.notes


def reference_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tasks: Tasks, directory: Path | None = None
) -> ReferenceStates | None:
    """Run the reference model once, for `evaluate(..., reference=…)` of others; None if no text is measured.

    `directory` receives its states as a memory-mapped file, for models whose states do not fit in memory.
    """
    if tasks.perplexity_text is None:
        return None
    windows = windows_of(read_tokens(tasks.perplexity_text, tokenizer), tasks.window)
    return reference_states(model, windows, tasks.windows_batch, directory)


def check(tasks: Tasks, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Read every input of the tasks, so that a mistake is met before a model is loaded; return what to tell about them.

    Raises:
        InvalidInput: with every problem of every input file.
    """
    return read_inputs(tasks, tokenizer).notes


def read_inputs(tasks: Tasks, tokenizer: PreTrainedTokenizerBase) -> Inputs:
    """Read every input of the tasks.

    Raises:
        InvalidInput: with every problem of every input file; or prompts, and no chat template to ask them through.
    """
    problems: list[str] = []

    def attempt(source: S | None, read: Callable[[S], T], otherwise: T) -> T:
        try:
            return otherwise if source is None else read(source)
        except InvalidInput as error:
            problems.extend(error.problems)
            return otherwise

    inputs = Inputs(
        attempt(tasks.perplexity_text, lambda path: windows_of(read_tokens(path, tokenizer), tasks.window), None),
        attempt(tasks.safety, lambda task: read_safety(task, tokenizer), None),
        attempt(tasks.facts, read_questions, ()),
        attempt(tasks.prompts, read_prompts, ()),
    )
    if tasks.prompts is not None and tokenizer.chat_template is None:
        problems.append(NO_TEMPLATE)
    if problems:
        raise InvalidInput(problems)
    return inputs


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Tasks,
    *,
    reference: ReferenceStates | None = None,
    judge: Judge = judge,
    quiet: bool = False,
) -> Results:
    """Measure a causal LM. All inputs are read before anything is computed.

    Raises:
        InvalidInput: with every problem of every input file; or the reference read another text.
    """
    inputs = read_inputs(tasks, tokenizer)
    _check_reference(inputs, reference)
    with progress("evaluate", 4, quiet=quiet) as advance:
        perplexity, divergence = _text(model, inputs, tasks, reference)
        advance()
        safety = _safety(model, tokenizer, inputs.safety, tasks, judge)
        advance()
        facts = _facts(model, tokenizer, inputs.facts, tasks)
        advance()
        responses = refusals(model, tokenizer, inputs.prompts, tasks.max_new_tokens, tasks.prompts_batch, judge)
        advance()
    return Results(
        tasks.window,
        perplexity,
        divergence,
        safety,
        facts,
        responses,
        "" if inputs.safety is None else inputs.safety.form.title,
        None if inputs.safety is None else floors(inputs.safety.questions),
    )


def compare(results: Results, reference: Results, *, seed: int = 0) -> dict[str, Paired]:
    """Compare every rate that both results hold, paired by item; see `Results.outcomes` for the names.

    Raises:
        InvalidInput: the items of a shared measure differ.
    """
    theirs = reference.outcomes()
    _check_items(results, reference)
    return {name: _paired(ours, theirs[name], seed) for name, ours in results.outcomes().items() if name in theirs}


def _paired(ours: Sequence[float], theirs: Sequence[float], seed: int) -> Paired:
    gained = sum(a > b for a, b in zip(ours, theirs, strict=True))
    lost = sum(b > a for a, b in zip(ours, theirs, strict=True))
    return Paired(paired_bootstrap(ours, theirs, seed=seed), gained, lost, mcnemar(gained, lost), len(ours))


def _check_items(results: Results, reference: Results) -> None:
    def items(of: Results) -> dict[str, Sequence[object]]:
        asked: dict[str, Sequence[object]] = {
            f"safety/{name}": [(a.id, a.answer) for a in found] for name, found in of.safety.items()
        }
        return {
            **asked,
            "facts": [(a.id, a.answer) for a in of.facts],
            "prompts": [r.prompt for r in of.responses],
            **{f"ability/{name}": (ability.metric, ability.items) for name, ability in of.abilities.items()},
        }

    ours, theirs = items(results), items(reference)
    problems = [
        f"{name}: the two results hold different items; evaluate both on the same file"
        for name in ours
        if ours[name] and theirs.get(name) and ours[name] != theirs[name]
    ]
    if results.safety and reference.safety and results.safety_format != reference.safety_format:
        problems.append(
            f"safety: one model was asked in {results.safety_format}, the other in {reference.safety_format}; "
            "evaluate both in the same way"
        )
    if problems:
        raise InvalidInput(problems)


def _check_reference(inputs: Inputs, reference: ReferenceStates | None) -> None:
    if reference is None:
        return
    if inputs.windows is None or not inputs.windows.equal(reference.windows):
        raise InvalidInput(
            ["the reference read other tokens than this model: same text, tokenizer and window are needed"]
        )


def _safety(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: SafetyInputs | None,
    tasks: Tasks,
    judge: Judge,
) -> dict[str, tuple[Answer, ...]]:
    if inputs is None or tasks.safety is None:
        return {}
    return answer_safety(model, tokenizer, inputs, tasks.safety.protocols, tasks.questions_batch, judge)


def _facts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], tasks: Tasks
) -> tuple[Answer, ...]:
    if not questions:
        return ()
    protocol = {PRIMARY_PROTOCOL: PROTOCOLS[PRIMARY_PROTOCOL]}
    chosen = choose(model, tokenizer, questions, tasks.questions_batch, protocol)
    return answers(questions, chosen[PRIMARY_PROTOCOL])


def _text(
    model: PreTrainedModel, inputs: Inputs, tasks: Tasks, reference: ReferenceStates | None
) -> tuple[float | None, Divergence | None]:
    """Perplexity and the distance to the reference, from one pass over the windows."""
    if inputs.windows is None:
        return None, None
    total = 0.0
    with inference(model) as cut:
        comparison = None if reference is None else Comparison(reference, cut.head, cut.device)
        for ids, states in window_states(cut, inputs.windows, tasks.windows_batch):
            total += negative_log_likelihood(cut.head, ids, states)
            if comparison is not None:
                comparison.add(states)
    predictions = inputs.windows[:, 1:].numel()
    return exp_mean(total, predictions), None if comparison is None else comparison.result()
