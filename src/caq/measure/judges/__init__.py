"""Judges by name: who says whether a response refuses. A judge is one module and one line of `JUDGES`.

Guard models are pinned to a revision; `NAME@WHERE` takes another one, or a local directory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from caq.errors import InvalidInput, nearest
from caq.measure.judges.base import Judge, JudgeSpec
from caq.measure.judges.llama_guard import LLAMA_GUARD
from caq.measure.judges.phrases import PHRASES
from caq.measure.judges.wildguard import WILDGUARD
from caq.measure.record import JudgeCard

JUDGES: dict[str, JudgeSpec] = {"phrases": PHRASES, "wildguard": WILDGUARD, "llama-guard": LLAMA_GUARD}
DEFAULT_JUDGE = "phrases"


@dataclass(frozen=True)
class NamedJudge:
    """A judge as it was asked for: its name in `JUDGES`, and the revision or local directory of a guard model."""

    name: str
    where: str = ""

    @property
    def harmless(self) -> bool:
        """Whether it tells a refusal of a harmless prompt from an answer."""
        return JUDGES[self.name].harmless

    @property
    def card(self) -> JudgeCard:
        """Who judges, and its error rates where they were counted."""
        return JUDGES[self.name].card(self.where)

    def open(self, device: torch.device) -> Judge:
        """Return the judge, ready to be asked; a guard model is loaded, from the hub if need be.

        Raises:
            InvalidInput: the guard cannot be downloaded or loaded.
        """
        return JUDGES[self.name].open(self.where, device)


def find_judge(given: str) -> NamedJudge:
    """Return a judge by `NAME` or `NAME@WHERE`, which may be a revision or a directory; nothing is loaded.

    Raises:
        InvalidInput: there is no such judge, or nothing usable at `WHERE`.
    """
    name, _, where = given.partition("@")
    if name not in JUDGES:
        raise InvalidInput(f"{name}: no such judge{nearest(name, JUDGES)}")
    return NamedJudge(name, JUDGES[name].resolve(where))
