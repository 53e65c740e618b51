"""A file appears whole or not at all, whoever else writes it and however its writer ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from caq.files.whole import sweep, sweep_directory, whole, write_bytes, write_json, write_text


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_text_is_written_byte_for_byte_into_a_directory_that_is_made(tmp_path: Path) -> None:
    write_text(tmp_path / "deep" / "text", "a\r\nä\n")
    assert (tmp_path / "deep" / "text").read_bytes() == "a\r\nä\n".encode()
    write_json(tmp_path / "deep" / "text", {"a": 1})
    assert (tmp_path / "deep" / "text").read_text() == '{\n  "a": 1\n}\n'
    assert names(tmp_path / "deep") == ["text"]
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "deep" / "text").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    write_text(tmp_path / "text", "old")
    with pytest.raises(error), whole(tmp_path / "text") as partial:
        partial.write_text("half")
        assert partial.parent == tmp_path
        raise error
    assert (tmp_path / "text").read_text() == "old"
    assert names(tmp_path) == ["text"]


def test_writers_at_the_same_time_do_not_meet(tmp_path: Path) -> None:
    with whole(tmp_path / "text") as one, whole(tmp_path / "text") as other:
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "text").read_text() == "one"
    assert names(tmp_path) == ["text"]


def test_what_killed_writers_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom caq.files.whole import whole\n"
        "with whole(Path(sys.argv[1])) as partial:\n    partial.write_text('half')\n    os.kill(os.getpid(), 9)\n"
    )
    for name in ("a[b]", "a[b].c", "deep/d"):
        killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=False)
        assert killed.returncode == -signal.SIGKILL
    write_bytes(tmp_path / "a[b]", b"whole")
    assert len(names(tmp_path)) == 4
    sweep(tmp_path / "a[b]")
    left = names(tmp_path)
    assert len(left) == 3
    assert left[0].startswith(".a[b].c.partial-")
    sweep_directory(tmp_path)
    assert names(tmp_path) == ["a[b]", "deep"]
    assert names(tmp_path / "deep") == []
