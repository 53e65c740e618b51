"""Locks between processes: one writer an output, one at a time a cache entry, and the dead hold nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from caq.errors import InvalidInput
from caq.files.lock import locked, turn

HOLD = """
import sys
from pathlib import Path
from caq.files.lock import locked
with locked(Path("out"), Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
APPEND = """
import sys, time
from pathlib import Path
from caq.files.lock import turn
for _ in range(10):
    with turn(Path(sys.argv[1])):
        counter = Path(sys.argv[1]) / "counter"
        number = int(counter.read_text()) if counter.exists() else 0
        time.sleep(0.002)
        counter.write_text(str(number + 1))
"""


@contextmanager
def holder(lock: Path) -> Iterator[subprocess.Popen[str]]:
    """Run another process that holds a lock."""
    command = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    lock = tmp_path / ".out.lock"
    with holder(lock) as process:
        with (
            pytest.raises(InvalidInput, match=rf"out: process {process.pid} on .* is writing here; wait"),
            locked(tmp_path / "out", lock),
        ):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        # It died with the lock in its hands, and left its file.
        assert lock.exists()
        with locked(tmp_path / "out", lock):
            assert "process" in lock.read_text()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_ended_lets_the_next_in(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(RuntimeError), locked(tmp_path / "out", tmp_path / "deep" / ".lock"):
            raise RuntimeError
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_place_that_cannot_be_written_is_refused_with_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="cannot be written and locked"), locked(tmp_path, tmp_path / "file" / "x"):
        pass


def test_turns_never_overlap(tmp_path: Path) -> None:
    command = [sys.executable, "-c", APPEND, str(tmp_path / "entry")]
    processes = [subprocess.Popen(command) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    assert (tmp_path / "entry" / "counter").read_text() == "40"
    assert [path.name for path in (tmp_path / "entry").iterdir()] == ["counter"]


def test_a_turn_begins_without_what_killed_writers_left(tmp_path: Path) -> None:
    (tmp_path / ".00001.safetensors.partial-0a1b2c3d").write_text("half")
    with turn(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert list(tmp_path.iterdir()) == []
