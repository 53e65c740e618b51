"""A command, killed at any moment and run again, ends with the bytes of one that nobody killed, and leaves nothing."""

from __future__ import annotations

import random
import signal

import pytest

from caq.checkpoint.manifest import verify
from tests.faults import kills
from tests.faults.bench import Bench, content
from tests.faults.stage import WHOLE

#: Kills of every command in the default suite, at its end, and by the clock.
FEW, LAST, TIMED = 2, 40, 10
NEW = f"{WHOLE} -o new"


@pytest.mark.parametrize("name", ["quantize", "compare", "evaluate"])
def test_killed_before_a_change_of_a_file_it_goes_on_to_the_same_bytes(name: str, bench: Bench) -> None:
    kills.sweep(bench, name, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("name", kills.COMMANDS)
def test_killed_before_any_change_of_a_file_too(name: str, bench: Bench) -> None:
    kills.sweep(bench, name, kills.PLACES[name])


@pytest.mark.slow
def test_killed_while_it_replaces_an_older_checkpoint_one_of_the_two_is_whole(bench: Bench) -> None:
    older = f"{NEW} --set transforms.learn=false"
    with bench.fresh() as root:
        (root / "out").rename(root / "new")
        expected = content(root / "new")
        assert bench.run(root, older).status == 0
        before = content(root / "new")
        changes = bench.run(root, NEW).changes
        for place in range(changes - LAST, changes + 1):
            assert bench.run(root, older).status == 0
            killed = bench.run(root, NEW, kill_at=place)
            assert killed.status == -signal.SIGKILL, place
            if (root / "new").exists():
                assert content(root / "new") in (before, expected), place
                assert verify(root / "new") == (), place
            assert bench.run(root, NEW).status == 0, place
            assert content(root / "new") == expected, place
            assert not list(root.glob(".new*")), place


@pytest.mark.slow
def test_killed_again_and_again_by_the_clock_it_ends_with_the_same_bytes(bench: Bench) -> None:
    clock = random.Random(0)
    for attempt in range(TIMED):
        with bench.fresh(*kills.INPUTS) as root:
            seconds = bench.run(root, f"{WHOLE} -o first --cache first-cache").seconds
            for _ in range(3):
                bench.run(root, NEW, after=clock.uniform(0, seconds))
            assert bench.run(root, NEW).status == 0, attempt
            assert content(root / "new") == content(bench.stage / "out"), attempt
            assert not list(root.glob(".new*")), attempt
