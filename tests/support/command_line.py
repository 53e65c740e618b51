"""A `caq` command as a test sees it end; `conftest.py` runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str


Caq = Callable[..., Ended]
