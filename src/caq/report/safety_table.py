"""Tables beside a safety score: what it is above, and which letters it comes from."""

from __future__ import annotations

from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.table import Table

from caq.measure.results import LetterCounts, Results


def floor_table(results: Results) -> Table:
    """Return chance and the constant letters, in percent: over all questions, then by category."""
    assert results.floors is not None
    groups = {"all": results.floors.overall, **results.floors.categories}
    table = _table(f"Safety % without reading the questions ({results.safety_format})", "", *groups)
    table.add_row("chance", *(_percent(floor.chance) for floor in groups.values()))
    for letter in results.floors.overall.letters:
        table.add_row(f"always {letter}", *(_percent(floor.letters[letter]) for floor in groups.values()))
    table.add_row("questions", *(str(floor.items) for floor in groups.values()))
    return table


def letter_table(named: Mapping[str, Results]) -> Table:
    """Return how often each letter is right and was chosen, a row per model and protocol."""
    counts = {
        f"{name}, {protocol}": results.letters(protocol)
        for name, results in named.items()
        for protocol in results.safety
    }
    letters = sorted({letter for one in counts.values() for letter in (*one.right, *one.chosen)})
    table = _table("Letters chosen", "", *letters, "unparsed", "refused")
    right = next(iter(counts.values())).right
    table.add_row("right answers", *(str(right.get(letter, 0)) for letter in letters), "", "")
    for name, one in counts.items():
        table.add_row(name, *_row(one, letters))
    return table


def _row(counts: LetterCounts, letters: list[str]) -> list[str]:
    return [*(str(counts.chosen.get(letter, 0)) for letter in letters), str(counts.unparsed), str(counts.refused)]


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left", overflow="fold", no_wrap=not index)
    return table


def _percent(share: float) -> str:
    return f"{share * 100:.1f}"
