"""Write a directory whole or not at all, and prove later that it is still what was written."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from caq.errors import InvalidInput

HASHES = "sha256sums.json"


def require_space(path: Path, needed: int) -> None:
    """Check that the file system that holds `path`, which need not exist yet, has `needed` free bytes.

    Raises:
        InvalidInput: it has fewer.
    """
    existing = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise InvalidInput(
            [
                f"{path}: needs {needed / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB free; "
                "free some space, or choose an output directory on another disk"
            ]
        )


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
    partial = target.with_name(f".{target.name}.partial-{secrets.token_hex(4)}")
    partial.mkdir()
    try:
        yield partial
        _flush(partial)
        _replace(target, partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_hashes(directory: Path) -> Path:
    """Write `sha256sums.json`, the sha256 of every other file by relative path, and return its path."""
    hashes = {
        path.relative_to(directory).as_posix(): _sha256(path)
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path != directory / HASHES
    }
    _write_hashes(directory, hashes)
    return directory / HASHES


def put_text(directory: Path, name: str, text: str) -> None:
    """Put a text file into a directory that has hashes, or replace it there, with its hash; both appear or neither.

    The other files' hashes stay what they were, so that a file that was damaged in the meantime is still found.

    Raises:
        InvalidInput: the directory has no readable `sha256sums.json`.
    """
    hashes = read_hashes(directory)
    with atomic_directory(directory) as fresh:
        shutil.copytree(directory, fresh, copy_function=_link, dirs_exist_ok=True)
        for replaced in (name, HASHES):
            # Written through, a link would change the file that still stands.
            (fresh / replaced).unlink(missing_ok=True)
        (fresh / name).write_text(text, encoding="utf-8")
        _write_hashes(fresh, {**hashes, name: _sha256(fresh / name)})


def verify(directory: Path) -> tuple[str, ...]:
    """Return the relative paths of the files that are missing or differ from `sha256sums.json`.

    Raises:
        InvalidInput: the directory has no readable `sha256sums.json`.
    """
    hashes = read_hashes(directory)
    return tuple(
        name
        for name, expected in hashes.items()
        if not (directory / name).is_file() or _sha256(directory / name) != expected
    )


def read_hashes(directory: Path) -> dict[str, str]:
    """Return the sha256 of every file by relative path, as they were written.

    Raises:
        InvalidInput: the directory has no readable `sha256sums.json`.
    """
    path = directory / HASHES
    try:
        hashes = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidInput([f"{path}: is not readable, so nothing can be verified ({error})"]) from error
    if not isinstance(hashes, dict):
        raise InvalidInput([f"{path}: is not an object of file names and hashes"])
    root = directory.resolve()
    outside = [name for name in hashes if root not in (root / name).absolute().parents or ".." in Path(name).parts]
    if outside:
        raise InvalidInput([f"{path}: names {name!r}, outside of the directory" for name in outside])
    return hashes


def _write_hashes(directory: Path, hashes: Mapping[str, str]) -> None:
    (directory / HASHES).write_text(json.dumps(dict(sorted(hashes.items())), indent=2) + "\n", encoding="utf-8")


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        # Not every file system has links.
        shutil.copy2(source, target)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _previous(target: Path) -> Path:
    return target.with_name(f".{target.name}.previous")


def _restore(target: Path) -> None:
    """Undo a replacement that was killed between its two renames."""
    if _previous(target).is_dir() and not target.exists():
        _previous(target).rename(target)


def _require_replaceable(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise InvalidInput([f"{target}: is a file; choose a new directory for the output"])
    if target.is_dir() and any(target.iterdir()) and not (target / HASHES).is_file():
        raise InvalidInput(
            [f"{target}: has files that CAQ did not write and would delete; choose a new or empty directory"]
        )


def _replace(target: Path, partial: Path) -> None:
    previous = _previous(target)
    shutil.rmtree(previous, ignore_errors=True)
    if target.exists():
        target.rename(previous)
    try:
        partial.rename(target)
    except OSError:
        _restore(target)
        raise
    _flush_entry(target.parent)
    shutil.rmtree(previous, ignore_errors=True)


def _flush(directory: Path) -> None:
    for path in directory.rglob("*"):
        _flush_entry(path)
    _flush_entry(directory)


def _flush_entry(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
