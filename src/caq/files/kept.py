"""What the cache keeps: listed by kind, size and last use, and cleared; never what a run holds, or another wrote.

An entry is a directory `{root}/{kind}/{name}`, or a file there. Its last use is its own time of change, which runs set
when they open it: the times of reading are switched off on many disks.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from caq.files.lock import alone
from caq.files.whole import is_partial

#: By kind, the names of entries, and of the files in those that are directories.
KINDS = {
    "teachers": (r"(hidden|targets)-[0-9a-f]{20}", r"(\d{5,}|head)\.safetensors"),
    "responses": (r"[0-9a-f]{20}", r"\d{5,}\.json"),
    # Version 0.1 kept plain texts and lines.
    "texts": (r"[\w-]+(\.json|\.txt)?", r"\d{5,}\.jsonl?"),
    "probes": (r"[0-9a-f]{20}\.json", r"(?!)"),
    "safetybench": (r"test_answers_\w+\.json", r"(?!)"),
}


@dataclass(frozen=True)
class Entry:
    """One entry of the cache.

    Attributes:
        files: what of it CAQ wrote.
        size: their bytes.
        used: when a run opened it last, in seconds since the epoch.
    """

    kind: str
    path: Path
    files: tuple[Path, ...]
    size: int
    used: float


def entries(root: Path) -> tuple[Entry, ...]:
    """Return what the cache keeps, the least recently used first; what another program put there is not listed."""
    found = (_entry(kind, path) for kind in KINDS for path in _names(root / kind))
    return tuple(sorted((entry for entry in found if entry is not None), key=lambda entry: (entry.used, entry.path)))


def to_clear(kept: Sequence[Entry], *, before: float | None = None, keep: int | None = None) -> tuple[Entry, ...]:
    """Return which entries go: those last used `before` a time, and the oldest until `keep` bytes are left.

    Without either, all of them.
    """
    if before is None and keep is None:
        return tuple(kept)
    left, chosen = sum(entry.size for entry in kept), []
    for entry in kept:
        if (before is not None and entry.used < before) or (keep is not None and left > keep):
            chosen.append(entry)
            left -= entry.size
    return tuple(chosen)


def clear(entry: Entry) -> bool:
    """Delete an entry; return whether it could be: not while a run holds it."""
    with alone(entry.path) as free:
        if free:
            for file in (*entry.files, entry.path / ".lock") if entry.path.is_dir() else entry.files:
                file.unlink(missing_ok=True)
    if entry.path.is_dir():
        # What others put there stays, and so does the directory.
        with suppress(OSError):
            entry.path.rmdir()
    return free


def used(directory: Path) -> None:
    """Note that a run has opened an entry; one that is for reading only keeps its time."""
    with suppress(OSError):
        os.utime(directory)


def _names(directory: Path) -> Iterable[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else ()


def _entry(kind: str, path: Path) -> Entry | None:
    named, inside = KINDS[kind]
    if path.is_symlink() or not re.fullmatch(named, path.name):
        return None
    known: dict[Path, os.stat_result] = {}
    for file in _files(path, inside) if path.is_dir() else (path,):
        # A run may have ended its writing, or cleared it, since it was listed.
        with suppress(FileNotFoundError):
            known[file] = file.stat()
    times = [file.st_mtime for file in known.values()]
    if path.is_dir():
        times.append(path.stat().st_mtime)
    return Entry(kind, path, tuple(known), sum(file.st_size for file in known.values()), max(times)) if known else None


def _files(directory: Path, named: str) -> Iterator[Path]:
    for path in sorted(directory.iterdir()):
        if path.is_file() and not path.is_symlink() and (re.fullmatch(named, path.name) or is_partial(path)):
            yield path
