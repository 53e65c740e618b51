"""Multiple choice by likelihood: protocols that differ in what follows the prompt, one way to score.

A protocol says what may follow the prompt and what its log-likelihood is divided by; the highest wins. Numbers of two
protocols do not compare.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caq.errors import InvalidInput
from caq.items.question_prompts import ZERO_SHOT, PromptFormat, prompts
from caq.items.questions import LETTERS, Question
from caq.runners.likelihood import Choice, scores

#: log P of every continuation of every choice, in nats.
Score = Callable[[Sequence[Choice]], Sequence[Sequence[float]]]
# What may follow the prompt, one text an option.
Continuations = Callable[[Question], tuple[str, ...]]


@dataclass(frozen=True)
class Protocol:
    """A way to choose an option by likelihood.

    Attributes:
        continuations: of a question, one an option.
        lengths: what their log-likelihoods are divided by; None divides by nothing.
    """

    continuations: Continuations
    lengths: Callable[[Question], tuple[int, ...]] | None = None


def option_text(question: Question) -> tuple[str, ...]:
    """A space and the option's text: what the paper's tables score."""
    return tuple(f" {text}" for text in question.options)


def letter(question: Question) -> tuple[str, ...]:
    """An opened bracket and the option's letter: SafetyBench's rule for base models.

    The bracket is common to all, so the argmax is that of the letters after it, among those that are options.
    """
    return tuple(f"({name}" for name in LETTERS[: len(question.options)])


def characters(question: Question) -> tuple[int, ...]:
    """The options' lengths in characters, without the space before them, as in lm-eval's `acc_norm`."""
    return tuple(map(len, question.options))


OPTION_TEXT, OPTION_TEXT_NORMALIZED, LETTER = "option-text", "option-text-normalized", "letter"
PROTOCOLS: Mapping[str, Protocol] = {
    OPTION_TEXT: Protocol(option_text),
    OPTION_TEXT_NORMALIZED: Protocol(option_text, characters),
    LETTER: Protocol(letter),
}


def choose(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    batch_size: int,
    protocols: Mapping[str, Protocol] = PROTOCOLS,
    form: PromptFormat = ZERO_SHOT,
) -> dict[str, tuple[int, ...]]:
    """Return for every protocol the index of the option chosen for each question; the first of equals wins.

    Protocols with the same continuations share their likelihoods.

    Raises:
        InvalidInput: a question longer than the model's context, or logits that are not numbers.
    """

    def score(choices: Sequence[Choice]) -> Sequence[Sequence[float]]:
        return scores(model, tokenizer, choices, batch_size, add_special_tokens=not form.chat)

    return choose_by(score, tokenizer, questions, protocols, form)


def choose_by(
    score: Score,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    protocols: Mapping[str, Protocol] = PROTOCOLS,
    form: PromptFormat = ZERO_SHOT,
) -> dict[str, tuple[int, ...]]:
    """Return the same as `choose` of whatever gives likelihoods; the tokenizer lends its chat template only."""
    found = _likelihoods(score, tokenizer, questions, protocols.values(), form)
    return {
        name: tuple(
            _best(_divided(values[protocol.continuations], protocol, question))
            for values, question in zip(found, questions, strict=True)
        )
        for name, protocol in protocols.items()
    }


def _likelihoods(
    score: Score,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    protocols: Iterable[Protocol],
    form: PromptFormat,
) -> list[dict[Continuations, list[float]]]:
    """Return every question's log-likelihoods, one an option, by kind of continuation."""
    kinds = list(dict.fromkeys(protocol.continuations for protocol in protocols))
    texts = [[kind(question) for kind in kinds] for question in questions]
    choices = [
        Choice(prompt, tuple(chain.from_iterable(tails)))
        for prompt, tails in zip(prompts(questions, form, tokenizer), texts, strict=True)
    ]
    rows = map(iter, score(choices))
    return [
        {kind: list(islice(row, len(question.options))) for kind in kinds}
        for row, question in zip(rows, questions, strict=True)
    ]


def _divided(values: Sequence[float], protocol: Protocol, question: Question) -> Sequence[float]:
    if protocol.lengths is None:
        return values
    return [value / length for value, length in zip(values, protocol.lengths(question), strict=True)]


def _best(values: Sequence[float]) -> int:
    if any(map(math.isnan, values)):
        raise InvalidInput(["the model's logits are not numbers (NaN); check its weights and scales"])
    return values.index(max(values))
