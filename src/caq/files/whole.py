"""Files that appear whole or not at all: written under another name, flushed to the disk, renamed.

The other name is `.NAME.partial-XXXXXXXX`, beside the file and never the same twice, so that any number of processes
can write one file at once: the last one's stands. A killed writer leaves it behind; `sweep` and `sweep_directory` are
for whoever holds the place alone.
"""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from caq.errors import InvalidInput

#: The end of such a name, as a pattern.
_PARTIAL = "partial-" + 8 * "[0-9a-f]"


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield the name of a file to write, which becomes `path` if the block succeeds and vanishes if it does not.

    Raises:
        InvalidInput: a directory is in its place.
    """
    if path.is_dir():
        raise InvalidInput(f"{path}: is a directory, where a file is to be written; remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_name(path)
    try:
        yield partial
        flush(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    flush(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole."""
    with whole(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file whole, with line ends as they are."""
    write_bytes(path, text.encode())


def write_json(path: Path, data: object) -> None:
    """Write a JSON file whole."""
    write_text(path, json.dumps(data, indent=2) + "\n")


def partial_name(path: Path) -> Path:
    """Return a new name beside `path`, for what is to become `path`."""
    return path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")


def is_partial(path: Path) -> bool:
    """Return whether a name is one that a writer gives to what is not whole yet."""
    return fnmatch.fnmatchcase(path.name, f".*.{_PARTIAL}")


def flush(path: Path) -> None:
    """Wait until a file's content, or a directory's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's content, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def contents_of(path: Path) -> str:
    """Return a hash of a file's content, or of the names and contents of a directory's files; "" for neither."""
    if path.is_file():
        return sha256_of(path)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else []
    named = [f"{file.relative_to(path)} {sha256_of(file)}" for file in files]
    return hashlib.sha256("\n".join(named).encode(errors="surrogateescape")).hexdigest() if named else ""


def sweep(target: Path) -> None:
    """Delete what killed writers of `target`, a file or a directory, left beside it."""
    _delete(target.parent.glob(f".{glob.escape(target.name)}.{_PARTIAL}"))


def sweep_directory(directory: Path) -> None:
    """Delete what killed writers left anywhere in a directory."""
    _delete(directory.rglob(f".*.{_PARTIAL}"))


def _delete(leftovers: Iterable[Path]) -> None:
    for path in list(leftovers):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
