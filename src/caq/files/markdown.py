"""Markdown of text that others wrote: shown as it is, on one line, and never obeyed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def plain(text: str) -> str:
    """Return Markdown that shows `text`: one line, no markup, no HTML, no control or direction marks."""
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    escaped = re.sub(r"([\\`*_{}\[\]<>#|~!$&@])", r"\\\1", " ".join(printable.split()))
    # What would begin a list or a heading in the middle of another.
    return re.sub(r"^(\d*)([-+=.)])(?=\s|$)", r"\1\\\2", escaped)


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a table of cells that are Markdown already."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def bullets(lines: Iterable[str]) -> str:
    """Return a list of lines that are Markdown already."""
    return "\n".join(f"- {line}" for line in lines)
