"""Where a trial happens: a fresh copy of the stage, and the process that commands are forked from."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.forks import Ended, Forks

Content = dict[str, bytes]


@dataclass(frozen=True)
class Bench:
    """What every trial has.

    Attributes:
        forking: runs commands.
        stage: as `write_stage` left it; only read.
        scratch: an empty directory.
    """

    forking: Forks
    stage: Path
    scratch: Path

    @contextmanager
    def fresh(self, *names: str) -> Iterator[Path]:
        """Copy the stage, or these of its entries, to a place that is always the same, and remove it at the end."""
        root = self.scratch / "within"
        root.mkdir()
        for name in names or [path.name for path in self.stage.iterdir()]:
            source = self.stage / name
            shutil.copytree(source, root / name) if source.is_dir() else shutil.copy2(source, root / name)
        yield root
        shutil.rmtree(root)

    def cleared(self) -> Bench:
        """Return the bench without what a trial that failed has left."""
        for path in self.scratch.iterdir():
            shutil.rmtree(path)
        return self

    def run(self, root: Path, command: str, **limits: Any) -> Ended:
        """Run a command in a directory."""
        return self.forking.run(command.split(), within=root, **limits)


def content(directory: Path, *, besides: tuple[str, ...] = ()) -> Content:
    """Return the bytes of all files under a directory, by relative path, but for those under `besides`."""
    files = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name.partition("/")[0] not in besides}


def share(good: int, total: int) -> str:
    """Return `3 of 4`, in the table's way."""
    return f"{good:,} of {total:,}"
