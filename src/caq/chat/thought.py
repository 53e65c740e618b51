"""Thoughts in texts: where one opens, and where the answer behind it begins.

A model is aligned in what it answers. What it thinks before is no answer, nor is a thought that never ends.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

#: How a thought opens, and what closes it, with the words between the brackets.
_MARKS = (
    (re.compile(r"<([\w:-]*(?:think|thought|reason)[\w:-]*)>", re.IGNORECASE), "</{}>"),
    (re.compile(r"\[(\w*(?:THINK|THOUGHT|REASON)\w*)\]"), "[/{}]"),
    (re.compile(r"<\|(?:begin|start)_of_(\w*(?:think|thought|reason)\w*)\|>"), "<|end_of_{}|>"),
    (re.compile(r"<\|START_(\w*(?:THINK|REASON)\w*)\|>"), "<|END_{}|>"),
    (re.compile(r"<\|(\w*(?:think|thought|reason)\w*)_start\|>"), "<|{}_end|>"),
    (re.compile(r"◁(think)▷"), "◁/{}▷"),
    (re.compile(r"<\|channel\|>analysis()"), "<|channel|>final<|message|>"),
    (re.compile(r"<\|channel>thought()"), "<channel|>"),
    (re.compile(r"<unused94>thought()"), "<unused95>"),
)
#: Where a thought ends whose opening is not to be seen.
_BARE = re.compile(r"</think(?:ing)?>|\[/THINK\]|<\|channel\|>final<\|message\|>")


@dataclass(frozen=True)
class Split:
    """A response: how many of its characters are thought, and whether that ended."""

    thought: int = 0
    finished: bool = True


def left_open(text: str) -> str:
    """Return what closes the last thought that a text opens and does not close; empty if there is none."""
    openings = sorted(_openings(text))
    if not openings:
        return ""
    end, closing = openings[-1]
    return "" if closing in text[end:] else closing


def split(response: str, closing: str = "") -> Split:
    """Tell the thought at the beginning of a response from the answer behind it.

    Args:
        response: with its special tokens spelled out, among which the marks of thoughts may be.
        closing: what closes the thought that the prompt has opened; empty if it has opened none.
    """
    done = 0
    while True:
        if not closing:
            done, closing = _opened(response, done)
        if not closing:
            bare = None if done else _BARE.search(response)
            return Split(bare.end() if bare else done)
        end = response.find(closing, done)
        if end < 0:
            return Split(len(response), finished=False)
        # A second thought may follow the first.
        done, closing = end + len(closing), ""


def _opened(response: str, done: int) -> tuple[int, str]:
    """Return where the thought begins that opens a response behind `done`, and what closes it; nothing if none does."""
    start = done + len(response[done:]) - len(response[done:].lstrip())
    for mark, closing in _MARKS:
        if found := mark.match(response, start):
            return found.end(), closing.format(found[1])
    return done, ""


def _openings(text: str) -> Iterator[tuple[int, str]]:
    for mark, closing in _MARKS:
        yield from ((found.end(), closing.format(found[1])) for found in mark.finditer(text))
