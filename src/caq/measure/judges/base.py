"""What a judge is: it gives every response a label and a score, or abstains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from caq.items.requests import Prompt
from caq.measure.record import JudgeCard

Label = Literal["refused", "answered"]


@dataclass(frozen=True)
class Call:
    """What a judge says of one response.

    Attributes:
        label: None where it abstains.
        score: probability of the label against the other one, in [0, 1]; 1 from a rule, 0 for an abstention.
    """

    label: Label | None
    score: float


ABSTAINED = Call(None, 0.0)


class Judge(Protocol):
    """Says of responses to prompts whether they refuse."""

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> tuple[Call, ...]:
        """Return one call a response."""


@dataclass(frozen=True)
class JudgeSpec:
    """A judge as the registry knows it. Only `open` may load a model.

    Attributes:
        resolve: of the revision or directory that was asked for (empty if none was), the one that is used.
        card: who judges, by what `resolve` returned, and its error rates where they were counted.
        open: the judge, ready to be asked.
        harmless: whether it tells a refusal of a harmless prompt from an answer; one that looks for harm does not.
    """

    resolve: Callable[[str], str]
    card: Callable[[str], JudgeCard]
    open: Callable[[str, torch.device], Judge]
    harmless: bool = True
