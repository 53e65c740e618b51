"""Mixtures of sources: `self:0.5,wikitext2:0.5`. Imports no torch.

A comma behind a share makes a mixture; without one, a text is a single source, whatever colons and commas are in its
name. A part ends where its share does, so that its own name may have them, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

_PART = re.compile(r"(.*?):(\d+\.?\d*|\.\d+)(?:,|\Z)", re.DOTALL)
_MIXED = re.compile(r":(\d+\.?\d*|\.\d+),")
_AS_IN = "of a mixture, as in self:0.5,wikitext2:0.5 (a file of such a name has to be renamed)"


@dataclass(frozen=True)
class Part:
    """One source of a text and its share, relative to those of the others, as it was written."""

    source: str
    share: str


def parts_of(text: str) -> tuple[Part, ...]:
    """Return the sources of a text: those of a mixture, or the text itself as the only one.

    Raises:
        ValueError: a source without a share, a share without a source, or one of 0.
    """
    if not _MIXED.search(text):
        return (Part(text, "1"),)
    found = list(_PART.finditer(text))
    parts = tuple(Part(one[1].strip(), one[2]) for one in found)
    if found[-1].end() < len(text) or text.endswith(","):
        raise ValueError(f"should have a share behind each source {_AS_IN}")
    if not all(part.source for part in parts):
        raise ValueError(f"should have a source before each share {_AS_IN}")
    if not all(float(part.share) for part in parts):
        raise ValueError("should have shares above 0")
    return parts


def mixture(parts: Iterable[Part]) -> str:
    """Return the text that names these parts; `parts_of` turned round."""
    several = list(parts)
    return several[0].source if len(several) == 1 else ",".join(f"{one.source}:{one.share}" for one in several)


def dealt(count: int, parts: Sequence[Part]) -> tuple[int, ...]:
    """Return how many of `count` samples go to each part, by the largest remainder; equal ones in their order."""
    shares = [Fraction(part.share) for part in parts]
    exact = [count * share / sum(shares) for share in shares]
    whole = [int(one) for one in exact]
    largest = sorted(range(len(parts)), key=lambda index: whole[index] - exact[index])
    more = set(largest[: count - sum(whole)])
    return tuple(one + (index in more) for index, one in enumerate(whole))
