"""What learns the transforms: one file and one line each. Imports no torch."""

from __future__ import annotations

from typing import Any

from caq.train.blockwise import Blockwise
from caq.train.end_to_end import EndToEnd
from caq.train.learner import FitInputs, FitResult, Learner, learn_in_turn

__all__ = ["LEARNERS", "EndToEnd", "FitInputs", "FitResult", "Learner", "learn_in_turn"]

LEARNERS: dict[str, type[Any]] = {"blockwise": Blockwise, "end-to-end": EndToEnd}
