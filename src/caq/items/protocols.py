"""Multiple choice by likelihood: protocols that differ in what follows the prompt, one way to choose.

A protocol says what may follow the prompt and what its log-likelihood is divided by; the highest wins. Numbers of two
protocols do not compare.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from caq.errors import InvalidInput
from caq.items.questions import LETTERS, Question

#: What may follow the prompt, one text an option.
Continuations = Callable[[Question], tuple[str, ...]]


@dataclass(frozen=True)
class Protocol:
    """A way to choose an option by likelihood; `lengths` is what log-likelihoods are divided by, None by nothing."""

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


#: The first is that of the paper's tables, and comes first wherever several are shown.
OPTION_TEXT, OPTION_TEXT_NORMALIZED, LETTER = "option-text", "option-text-normalized", "letter"
PROTOCOLS: dict[str, Protocol] = {
    OPTION_TEXT: Protocol(option_text),
    OPTION_TEXT_NORMALIZED: Protocol(option_text, characters),
    LETTER: Protocol(letter),
}


def best_options(
    protocols: Mapping[str, Protocol], question: Question, likelihoods: Mapping[Continuations, Sequence[float]]
) -> dict[str, int]:
    """Return for every protocol the index of the option chosen for a question; the first of equals wins.

    `likelihoods` are in nats, one an option, by kind of continuation.

    Raises:
        InvalidInput: they are not numbers.
    """
    return {
        name: _best(_divided(likelihoods[protocol.continuations], protocol, question))
        for name, protocol in protocols.items()
    }


def _divided(values: Sequence[float], protocol: Protocol, question: Question) -> Sequence[float]:
    if protocol.lengths is None:
        return values
    return [value / length for value, length in zip(values, protocol.lengths(question), strict=True)]


def _best(values: Sequence[float]) -> int:
    if any(map(math.isnan, values)):
        raise InvalidInput("the model's logits are not numbers (NaN); check its weights and scales")
    return values.index(max(values))
