"""What learns the transforms, and what they are rounded to: one file and one line each. Imports no torch."""

from __future__ import annotations

from typing import Any

from caq.train.blockwise import Blockwise
from caq.train.end_to_end import EndToEnd
from caq.train.learner import FitInputs, FitResult, Learner, Prompts, learn_in_turn, stages
from caq.train.local import Local
from caq.train.q_resafe import QResafe
from caq.train.refine import Refine

__all__ = [
    "LEARNERS",
    "Blockwise",
    "EndToEnd",
    "FitInputs",
    "FitResult",
    "Learner",
    "Local",
    "Prompts",
    "QResafe",
    "Refine",
    "learn_in_turn",
    "stages",
]

LEARNERS: dict[str, type[Any]] = {
    "end-to-end": EndToEnd,
    "blockwise": Blockwise,
    "local": Local,
    "refine": Refine,
    "q-resafe": QResafe,
}
