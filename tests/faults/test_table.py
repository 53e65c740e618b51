"""The page's table and the trials behind it are of one piece; the quick ones of them run here."""

from __future__ import annotations

import pytest

from tests.faults.bench import Bench
from tests.faults.table import BEGIN, FAULTS, PAGE, rows, written

#: Of a second or a few; `make test-faults` runs them all.
QUICK = (1, 2, 3, 4, 5, 7, 8, 10, 11, 12)


def test_every_row_of_the_page_has_its_trial_and_a_figure() -> None:
    page = PAGE.read_text(encoding="utf-8")
    found = rows(page)
    assert found.keys() == FAULTS.keys()
    assert {number: cells[:-1] for number, cells in found.items()} == {
        number: (fault.name, fault.behaviour, fault.tried) for number, fault in FAULTS.items()
    }
    assert all(any(letter.isdigit() for letter in cells[-1]) for cells in found.values())


def test_the_table_is_written_in_its_place_and_nothing_else_changes() -> None:
    page = PAGE.read_text(encoding="utf-8")
    figures = {number: f"{number} of {number}" for number in FAULTS}
    changed = written(page, figures)
    assert {number: cells[-1] for number, cells in rows(changed).items()} == figures
    assert changed.partition(BEGIN)[0] == page.partition(BEGIN)[0]
    assert written(changed, figures) == changed


@pytest.mark.parametrize("number", FAULTS.keys() & set(QUICK))
def test_a_fault_gets_what_the_table_says(number: int, bench: Bench) -> None:
    FAULTS[number].trial(bench)


@pytest.mark.slow
@pytest.mark.parametrize("number", FAULTS.keys() - {*QUICK, 16, 22})
def test_the_longer_ones_too(number: int, bench: Bench) -> None:
    FAULTS[number].trial(bench)
