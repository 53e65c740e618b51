"""Tables beside a safety score: what it is above, and which letters it comes from."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from caq.items.floors import floors
from caq.measure.record import SAFETY_PREFIX, ArmRecord, Comparison
from caq.report.flips import letters
from caq.report.summary import questions
from caq.report.table import empty_table
from caq.report.wording import points


def floor_table(comparison: Comparison) -> Table | None:
    """Return chance and the constant letters, in percent, over all questions, then by category; None without any."""
    asked = next((items for measure, items in comparison.items.items() if measure.startswith(SAFETY_PREFIX)), ())
    floor = floors(questions(asked))
    if floor is None:
        return None
    # A category may be called `all`, too.
    groups = [("all", floor.overall), *floor.categories.items()]
    title = f"Safety % without reading the questions ({comparison.data.get('safety', '')})"
    table = empty_table(title, ["", *(name for name, _ in groups)])
    table.add_row("chance", *(points(group.chance) for _, group in groups))
    for letter in floor.overall.letters:
        table.add_row(f"always {letter}", *(points(group.letters[letter]) for _, group in groups))
    table.add_row("questions", *(str(group.items) for _, group in groups))
    return table


def letter_table(named: Mapping[str, ArmRecord], comparison: Comparison) -> Table | None:
    """Return how often each letter is right and was chosen, a row per model and protocol; None if nobody answered."""
    counts = {
        f"{name}, {measure.removeprefix(SAFETY_PREFIX)}": letters(comparison.items[measure], outcomes)
        for name, arm in named.items()
        for measure, outcomes in arm.outcomes.items()
        if measure.startswith(SAFETY_PREFIX)
    }
    if not counts:
        return None
    names = sorted({letter for count in counts.values() for letter in (*count.right, *count.chosen)})
    table = empty_table("Letters chosen", ["", *names, "unparsed", "refused"])
    for right in [count.right for count in counts.values()][:1]:
        table.add_row("right answers", *(str(right.get(letter, 0)) for letter in names), "", "")
    for name, count in counts.items():
        chosen = (count.chosen.get(letter, 0) for letter in names)
        table.add_row(name, *map(str, (*chosen, count.unparsed, count.refused)))
    return table
