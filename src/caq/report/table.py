"""One table of many models: for the terminal by rich, for documents as Markdown, both from the same cells.

Each model has one or more records, one per seed: one is shown as it is, several as mean ± standard deviation.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from caq.files.markdown import plain
from caq.items.protocols import OPTION_TEXT
from caq.measure.record import ENDED_PREFIX, HELPFULNESS, LANGUAGE, REFUSAL, SAFETY_PREFIX, Ability, ArmRecord, Item
from caq.report.measures import ABILITY_PREFIX, N_MIX, category_rates, numbers, safety_measures
from caq.statistics.resampling import across_seeds


@dataclass(frozen=True)
class Column:
    """A measure of the summary, its heading and how its number is written."""

    name: str
    heading: str
    decimals: int
    scale: float = 1.0


PERCENT = 100.0
COLUMNS = (
    Column("perplexity", "Perplexity ↓", 2),
    Column(SAFETY_PREFIX + OPTION_TEXT, "Safety % ↑", 1, PERCENT),
    Column("safety/option-text-normalized", "normalised % ↑", 1, PERCENT),
    Column("safety/letter", "by letter % ↑", 1, PERCENT),
    Column("safety/generate", "written % ↑", 1, PERCENT),
    Column(REFUSAL, "Refusal % ↑", 1, PERCENT),
    Column(HELPFULNESS, "Helpfulness % ↑", 1, PERCENT),
    Column(LANGUAGE, "Language kept % ↑", 1, PERCENT),
    Column(N_MIX, "N-Mix % ↓", 1, PERCENT),
    Column("facts", "Facts % ↑", 1, PERCENT),
    Column("logit_mse", "Logit MSE ↓", 4),
    Column("kl", "KL ↓", 4),
    Column("same_top", "Same top % ↑", 1, PERCENT),
    Column("kl_chat", "KL of responses ↓", 4),
)
MISSING = "n/a"
PIPED_COLUMNS = 160

Named = Mapping[str, Sequence[ArmRecord]]


def wide_console() -> Console:
    """Return a console on standard output; where that is a file or a pipe, wide enough not to fold the table.

    What it prints is names and categories of users, in which brackets and colons are themselves.
    """
    return Console(width=None if sys.stdout.isatty() else PIPED_COLUMNS, markup=False, emoji=False)


def rich_table(named: Named, title: str | None = None) -> Table:
    """Return the table for a terminal: a row per model, a column per measure that any of them has.

    What a narrow terminal has no room for goes to the next line; no number is cut.
    """
    headings, rows = cells(named)
    table = empty_table(title, headings)
    for row in rows:
        table.add_row(*row)
    return table


def empty_table(title: str | None, headings: Sequence[str]) -> Table:
    """Return a table for a terminal without rows, the first column text and the others numbers."""
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left", overflow="fold", no_wrap=not index)
    return table


def markdown(named: Named) -> str:
    """Return the same table in Markdown, ending in a line break."""
    return markdown_table(*cells(named))


def markdown_categories(named: Named, items: Mapping[str, Sequence[Item]]) -> str:
    """Return safety accuracy by category, in percent, as a Markdown table."""
    measure = SAFETY_PREFIX + OPTION_TEXT
    rates = {name: [category_rates(arm, items, measure) for arm in arms] for name, arms in named.items()}
    names = list(dict.fromkeys(name for runs in rates.values() for run in runs for name in run))
    columns = [Column(name, name, 1, PERCENT) for name in names]
    return markdown_table(
        ["Model", *map(plain, names)],
        [[model, *(_cell(runs, column) for column in columns)] for model, runs in rates.items()],
    )


def cells(named: Named) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows; a measure that nobody has is left out, one that a model lacks reads `n/a`."""
    measured = {name: [numbers(arm) for arm in arms] for name, arms in named.items()}
    columns = [
        column
        for column in (*COLUMNS, *_ended_columns(named), *_other_protocols(named), *_ability_columns(named))
        if any(column.name in run for runs in measured.values() for run in runs)
    ]
    rows = [[model, *(_cell(runs, column) for column in columns)] for model, runs in measured.items()]
    return ["Model", *(column.heading for column in columns)], rows


def _other_protocols(named: Named) -> list[Column]:
    known = {column.name for column in COLUMNS}
    measures = dict.fromkeys(measure for arms in named.values() for arm in arms for measure in safety_measures(arm))
    others = [measure for measure in measures if measure not in known]
    return [Column(measure, f"{measure.removeprefix(SAFETY_PREFIX)} % ↑", 1, PERCENT) for measure in others]


def _ended_columns(named: Named) -> list[Column]:
    measures = dict.fromkeys(measure for arms in named.values() for arm in arms for measure in arm.outcomes)
    lengths = {measure: measure.removeprefix(ENDED_PREFIX) for measure in measures if measure.startswith(ENDED_PREFIX)}
    return [Column(measure, f"Ends in {tokens} tokens % ↑", 1, PERCENT) for measure, tokens in lengths.items()]


def _ability_columns(named: Named) -> list[Column]:
    abilities = {name: ability for arms in named.values() for arm in arms for name, ability in arm.abilities.items()}
    return [_ability_column(name, ability) for name, ability in abilities.items()]


def _ability_column(name: str, ability: Ability) -> Column:
    arrow = "↑" if ability.higher_is_better else "↓"
    if ability.outcomes:
        return Column(ABILITY_PREFIX + name, f"{name} {ability.metric} % {arrow}", 1, PERCENT)
    return Column(ABILITY_PREFIX + name, f"{name} {ability.metric} {arrow}", 2)


def _cell(runs: Sequence[Mapping[str, float]], column: Column) -> str:
    values = [run[column.name] * column.scale for run in runs if column.name in run]
    if not values:
        return MISSING
    spread = across_seeds(values)
    mean = f"{spread.mean:.{column.decimals}f}"
    return mean if spread.deviation is None else f"{mean} ± {spread.deviation:.{column.decimals}f}"


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose first column is text and whose others are numbers."""
    rule = ["---", *("---:" for _ in headings[1:])]
    lines = [headings, rule, *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
