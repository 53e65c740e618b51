"""A flipped bit in what caq has written is named, or made good: here in one file a kind; the table has them all."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults import flips
from tests.faults.bench import Bench


def test_verify_names_every_file_of_a_checkpoint(bench: Bench) -> None:
    flips.in_output(bench)


@pytest.mark.parametrize(
    "trial", [flips.in_workspace, flips.in_cache, pytest.param(flips.in_comparison, marks=pytest.mark.slow)]
)
def test_what_a_run_keeps_is_named_or_made_again(trial: Callable[[Bench, int], str], bench: Bench) -> None:
    trial(bench, 1)
