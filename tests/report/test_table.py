"""The table: one set of cells for the terminal and for Markdown; what was not measured reads `n/a`."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from caq.measure.record import ArmRecord, Comparison, Distances, Histogram, Item, Outcome
from caq.report.measures import by_role
from caq.report.safety_table import floor_table
from caq.report.table import MISSING, markdown, markdown_categories, rich_table, wide_console

NO_BINS = Histogram((), ())
DISTANCES = Distances(64, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, NO_BINS, 0)
ITEMS = {"safety/option-text": (Item("0", "Ethics", "?", ("a", "b"), 1), Item("1", "Privacy", "?", ("a", "b"), 0))}
REFERENCE = ArmRecord(
    "aligned",
    "aligned",
    {
        "safety/option-text": (Outcome(True, 1), Outcome(False, 1)),
        "refusal": (Outcome(True, response="No"),),
    },
    perplexity=10.0,
    kl_text=DISTANCES,
)
OTHER = ArmRecord("quantized", "quantized", {}, perplexity=12.345)


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines()]


def test_a_row_per_model_a_column_per_measure_and_n_a_where_one_is_missing() -> None:
    headings, _, first, second = rows(markdown({"aligned": [REFERENCE], "quantized": [OTHER]}))
    assert dict(zip(headings, first, strict=True)) == {
        "Model": "aligned",
        "Perplexity ↓": "10.00",
        "Safety % ↑": "50.0",
        "Refusal % ↑": "100.0",
        "Logit MSE ↓": "0.0000",
        "KL ↓": "0.0000",
        "Same top % ↑": "100.0",
    }
    assert second == ["quantized", "12.35", *[MISSING] * 5]


def test_the_terminals_table_has_the_same_cells() -> None:
    named = {"aligned": [REFERENCE], "quantized": [OTHER]}
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(rich_table(named, title="Two models"))
    shown = console.export_text()
    assert "Two models" in shown
    for row in (row for row in rows(markdown(named)) if row[0] != "---"):
        assert any(all(cell in line for cell in row) for line in shown.splitlines()), row


def test_a_narrow_terminal_folds_and_cuts_nothing() -> None:
    console = Console(width=60, file=io.StringIO(), record=True)
    console.print(rich_table({"aligned": [REFERENCE], "quantized": [replace(OTHER, perplexity=1234.56)]}))
    shown = console.export_text()
    assert "…" not in shown
    assert shown.count("n/a") == 5


def test_several_runs_show_mean_and_deviation() -> None:
    runs = [replace(OTHER, perplexity=value) for value in (1.0, 2.0, 3.0)]
    assert rows(markdown({"seeds": runs}))[2] == ["seeds", "2.00 ± 1.00"]


def test_categories_are_columns() -> None:
    headings, _, row = rows(markdown_categories({"aligned": [REFERENCE]}, ITEMS))
    assert headings == ["Model", "Ethics", "Privacy"]
    assert row == ["aligned", "100.0", "0.0"]


def test_a_model_called_like_a_reference_stands_beside_it() -> None:
    named_alike = replace(OTHER, name="aligned")
    found = by_role([REFERENCE, OTHER, named_alike])
    assert found == {"aligned": REFERENCE, "quantized": OTHER, "aligned (quantized)": named_alike}


def test_a_protocol_that_the_table_does_not_know_has_a_column_all_the_same() -> None:
    other = ArmRecord("aligned", "aligned", {"safety/by-vote": (Outcome(True, 1), Outcome(False, 0))})
    assert rows(markdown({"aligned": [other]}))[0] == ["Model", "by-vote % ↑"]


def test_a_category_of_a_user_s_own_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("all", "[/b] x", "a|b", ":fire:")
    items = {"safety/letter": tuple(Item(str(index), name, "?", ("a", "b"), 1) for index, name in enumerate(names))}
    table = floor_table(Comparison(items, (), data={"safety": "run [v2]/q.jsonl"}))
    assert table is not None
    wide_console().print(table)
    said = capsys.readouterr().out
    assert "(run [v2]/q.jsonl)" in " ".join(said.split())
    heading = next(line for line in said.splitlines() if ":fire:" in line)
    assert heading.split() == ["all", "all", "[/b]", "x", "a|b", ":fire:"]
    arm = replace(REFERENCE, outcomes={"safety/option-text": (Outcome(True, 1),)})
    first = markdown_categories({"a": [arm]}, {"safety/option-text": items["safety/letter"][2:3]}).splitlines()[0]
    assert first == "| Model | a\\|b |"
