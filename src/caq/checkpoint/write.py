"""Write a directory whole or not at all, and prove later that it is still what was written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from caq.errors import InvalidInput, refuse
from caq.files.lock import locked
from caq.files.whole import flush, partial_name, sha256_of, sweep, write_json, write_text

HASHES = "sha256sums.json"


def require_space(path: Path, needed: int) -> None:
    """Check that the file system that holds `path`, which need not exist yet, has `needed` free bytes.

    Raises:
        InvalidInput: it has fewer.
    """
    existing = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        room = f"needs {needed / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB free"
        raise InvalidInput(f"{path}: {room}; free some space, or choose an output directory on another disk")


@contextmanager
def owned(target: Path) -> Iterator[None]:
    """Hold an output directory, which need not exist yet, for this process, without what killed processes left.

    Raises:
        InvalidInput: another process holds it, or `atomic_directory` would refuse it.
    """
    with locked(target, _lock(target)):
        sweep(target)
        _restore(target)
        _require_replaceable(target)
        yield


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield an empty directory that becomes `target` if the block succeeds and vanishes if it does not.

    It lies beside `target`, on the same file system, and is flushed to disk before it is renamed. An existing
    `target` is replaced only if it is empty or was written by CAQ, and stays whole until the new one is.

    Raises:
        InvalidInput: `target` is a file, or a directory with content that CAQ did not write.
    """
    target = target.expanduser().resolve()
    _restore(target)
    _require_replaceable(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_name(target)
    partial.mkdir()
    try:
        yield partial
        _flush(partial)
        _replace(target, partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_hashes(directory: Path) -> None:
    """Write `sha256sums.json`: the sha256 of every other file by relative path."""
    hashes = {
        path.relative_to(directory).as_posix(): sha256_of(path)
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path != directory / HASHES
    }
    _write_hashes(directory, hashes)


def put_text(directory: Path, name: str, text: str) -> None:
    """Put a text file into a directory that has hashes, or replace it there, with its hash; both appear or neither.

    The other files' hashes stay what they were, so that a file that was damaged in the meantime is still found.

    Raises:
        InvalidInput: the directory has no readable `sha256sums.json`, or another process writes it.
    """
    directory = directory.expanduser().resolve()
    with locked(directory, _lock(directory)):
        hashes = read_hashes(directory)
        with atomic_directory(directory) as fresh:
            shutil.copytree(directory, fresh, copy_function=_link, dirs_exist_ok=True)
            # Replaced, never written through: the link is to the file of the old directory, which stays until the end.
            write_text(fresh / name, text)
            _write_hashes(fresh, {**hashes, name: sha256_of(fresh / name)})


def verify(directory: Path) -> tuple[str, ...]:
    """Return the relative paths of the files that are missing or differ from `sha256sums.json`.

    Raises:
        InvalidInput: the directory has no readable `sha256sums.json`.
    """
    hashes = read_hashes(directory)
    files = {name: directory / name for name in hashes}
    return tuple(name for name, file in files.items() if not file.is_file() or sha256_of(file) != hashes[name])


def read_hashes(directory: Path) -> dict[str, str]:
    """Return the sha256 of every file by relative path, as they were written.

    Raises:
        InvalidInput: there is no such directory, or it has no readable `sha256sums.json`.
    """
    path = directory / HASHES
    if not directory.is_dir():
        raise InvalidInput(f"{directory}: no such directory; give one that CAQ wrote")
    try:
        hashes = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        problem = f"is not readable, so nothing can be verified ({error}); copy the whole checkpoint again"
        raise InvalidInput(f"{path}: {problem}") from error
    if not isinstance(hashes, dict):
        raise InvalidInput(f"{path}: is not an object of file names and hashes; copy the whole checkpoint again")
    root = directory.resolve()
    outside = [name for name in hashes if root not in (root / name).absolute().parents or ".." in Path(name).parts]
    refuse([f"{path}: names {name!r}, outside of the directory" for name in outside])
    return hashes


def _write_hashes(directory: Path, hashes: Mapping[str, str]) -> None:
    write_json(directory / HASHES, dict(sorted(hashes.items())))


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        # Not every file system has links.
        shutil.copy2(source, target)


def _lock(target: Path) -> Path:
    return target.with_name(f".{target.name}.lock")


def _previous(target: Path) -> Path:
    return target.with_name(f".{target.name}.previous")


def _restore(target: Path) -> None:
    """Undo a replacement that was killed between its two renames, or end one that was killed after them."""
    previous = _previous(target)
    if previous.is_dir() and not target.exists():
        previous.rename(target)
    shutil.rmtree(previous, ignore_errors=True)


def _require_replaceable(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise InvalidInput(f"{target}: is a file; choose a new directory for the output")
    if target.is_dir() and any(target.iterdir()) and not (target / HASHES).is_file():
        problem = "has files that CAQ did not write and would delete; choose a new or empty directory"
        raise InvalidInput(f"{target}: {problem}")


def _replace(target: Path, partial: Path) -> None:
    if target.exists():
        target.rename(_previous(target))
    try:
        partial.rename(target)
    except OSError:
        _restore(target)
        raise
    flush(target.parent)
    _restore(target)


def _flush(directory: Path) -> None:
    for path in directory.rglob("*"):
        flush(path)
    flush(directory)
