"""`caq quantize`, killed at any moment and run again, ends with the bytes of a run that nobody killed."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from caq.checkpoint.write import verify
from tests.support.killed import Forks, forks
from tests.support.pairs import SMALL, write_pair

pytestmark = pytest.mark.slow

SETTINGS = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
#: Kills spread over the whole run, kills at its end, where the output is put in place, and kills by the clock.
SPREAD, LAST, TIMED = 24, 40, 10


@dataclass(frozen=True)
class Whole:
    """An uninterrupted run: its checkpoint, what it left in the cache, its changes of files, and how long it took."""

    output: dict[str, bytes]
    cache: list[str]
    changes: int
    seconds: float


def command(pair: Path, root: Path, *more: str) -> list[str]:
    inputs = ["quantize", str(pair / "aligned"), "--base", str(pair / "base"), "--calibration", str(pair / "text.txt")]
    return [*inputs, "-o", str(root / "out"), "--cache", str(root / "cache"), "--quiet", *SETTINGS, *more]


def content(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def cached(root: Path) -> list[str]:
    # A lock's file stays where its holder was killed after its last write; the next holder takes it over.
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.name != ".lock")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pair")
    write_pair(directory)
    return directory


@pytest.fixture(scope="module")
def forking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with forks({"HF_HUB_OFFLINE": "1"}, tmp_path_factory.mktemp("log") / "log") as process:
        yield process


@pytest.fixture(scope="module")
def whole(pair: Path, forking: Forks, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    root = tmp_path_factory.mktemp("whole")
    assert forking.run(command(pair, root / "first")).status == 0  # It waits for what is imported.
    started = time.monotonic()
    ended = forking.run(command(pair, root))
    seconds = time.monotonic() - started
    assert ended.status == 0
    return Whole(content(root / "out"), cached(root / "cache"), ended.changes, seconds)


def require_whole(root: Path, whole: Whole) -> None:
    assert content(root / "out") == whole.output
    assert sorted(path.name for path in root.iterdir()) == ["cache", "out"]
    assert cached(root / "cache") == whole.cache


def test_killed_before_any_change_of_a_file_it_goes_on_to_the_same_bytes(
    pair: Path, forking: Forks, whole: Whole, tmp_path: Path
) -> None:
    spread = [1 + place * whole.changes // SPREAD for place in range(SPREAD)]
    places = sorted({*spread, *range(whole.changes - LAST, whole.changes + 1)})
    for place in places:
        root = tmp_path / str(place)
        killed = forking.run(command(pair, root), kill_at=place)
        assert killed.status == -signal.SIGKILL, place
        assert not (root / "out").exists() or verify(root / "out") == (), place
        assert forking.run(command(pair, root)).status == 0, place
        require_whole(root, whole)


def test_killed_while_it_replaces_an_older_checkpoint_one_of_the_two_is_whole(
    pair: Path, forking: Forks, whole: Whole, tmp_path: Path
) -> None:
    older = command(pair, tmp_path, "--set", "transforms.learn=false")
    assert forking.run(command(pair, tmp_path)).status == 0  # From here on, the cache is full.
    assert forking.run(older).status == 0
    before = content(tmp_path / "out")
    changes = forking.run(command(pair, tmp_path)).changes
    for place in range(changes - LAST, changes + 1):
        assert forking.run(older).status == 0
        killed = forking.run(command(pair, tmp_path), kill_at=place)
        assert killed.status == -signal.SIGKILL, place
        if (tmp_path / "out").exists():
            assert content(tmp_path / "out") in (before, whole.output), place
        assert forking.run(command(pair, tmp_path)).status == 0, place
        require_whole(tmp_path, whole)


def test_killed_again_and_again_by_the_clock_it_ends_with_the_same_bytes(
    pair: Path, forking: Forks, whole: Whole, tmp_path: Path
) -> None:
    clock = random.Random(0)
    for attempt in range(TIMED):
        root = tmp_path / str(attempt)
        for _ in range(3):
            forking.run(command(pair, root), after=clock.uniform(0, whole.seconds))
        assert forking.run(command(pair, root)).status == 0, attempt
        require_whole(root, whole)
