"""Whether something can be written at a place, known before anything is computed for it."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from caq.errors import InvalidInput, is_out_of_space
from caq.files.whole import partial_name

#: What the longest name beside another adds to it.
_BESIDE = len(partial_name(Path("x")).name) - 1
#: Room for the names below a directory that is to be written.
_BELOW = 256
#: File systems without nameless files.
_NO_NAMELESS = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT)


def require_directory(path: Path, way_out: str) -> None:
    """Check that a directory, which need not exist yet, can be made and written; nothing is made.

    Raises:
        InvalidInput: it cannot; why, and the way out.
    """
    _refuse(path, _unlikely(path) or _unwritable(existing(path)), way_out)


def require_possible(path: Path, way_out: str) -> None:
    """Check that a path is a directory, or could become one; one that is there may be for reading only.

    Raises:
        InvalidInput: it cannot; why, and the way out.
    """
    there = existing(path)
    _refuse(path, _unlikely(path) or (None if there == path.absolute() else _unwritable(there)), way_out)


def require_replaceable(path: Path, way_out: str) -> None:
    """Check that a file or directory can be put at a path, with what is written beside it in the meantime.

    Raises:
        InvalidInput: it cannot; why, and the way out.
    """
    _refuse(path, _unlikely(path.parent) or _long(path) or _unwritable(existing(path.parent)), way_out)


def existing(path: Path) -> Path:
    """Return the path, absolute, or the nearest of its parents that is there; a broken link counts as there."""
    absolute = path.absolute()
    return next(folder for folder in (absolute, *absolute.parents) if os.path.lexists(folder))


def _refuse(path: Path, problem: str | None, way_out: str) -> None:
    if problem:
        raise InvalidInput(f"{path}: {problem.removeprefix(f'{path.absolute()} ')}; {way_out}")


def _unlikely(path: Path) -> str | None:
    """Return what is in a directory's way, as far as names tell."""
    if "\0" in str(path):
        return "holds a null character"
    there = existing(path)
    if not there.is_dir():
        what = "a broken link" if there.is_symlink() and not there.exists() else "a file"
        return f"{there} is {what}, no directory"
    missing = path.absolute().relative_to(there).parts
    longest = max((len(os.fsencode(part)) for part in missing), default=0)
    if longest > _limit(there, "PC_NAME_MAX"):
        return f"its name has {longest} bytes, and the file system takes {_limit(there, 'PC_NAME_MAX')}"
    total = len(os.fsencode(path.absolute()))
    if missing and total + _BELOW > _limit(there, "PC_PATH_MAX"):
        return f"its path has {total:,} bytes, which leaves no room for names below it"
    return None


def _long(path: Path) -> str | None:
    length, most = len(os.fsencode(path.name)), _limit(existing(path.parent), "PC_NAME_MAX") - _BESIDE
    return f"its name has {length} bytes, and with what is written beside it {most} fit" if length > most else None


def _limit(folder: Path, name: str) -> int:
    with suppress(OSError, ValueError):
        limit = os.pathconf(folder, name)
        if limit > 0:
            return limit
    return {"PC_NAME_MAX": 255, "PC_PATH_MAX": 4096}[name]


def _unwritable(folder: Path) -> str | None:
    """Return why nothing can be written in a directory that is there; a full disk is an error of its own."""
    try:
        _try(folder)
    except OSError as error:
        if is_out_of_space(error):
            raise
        return f"nothing can be written in {folder} ({error.strerror})"
    return None


def _try(folder: Path) -> None:
    """Write a file without a name, which leaves nothing, whenever this process dies; ask for permission elsewhere.

    Raises:
        OSError: nothing can be written.
    """
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    try:
        descriptor = os.open(folder, getattr(os, "O_TMPFILE", os.O_DIRECTORY) | os.O_WRONLY, 0o600)
    except OSError as error:
        if error.errno in _NO_NAMELESS:
            return
        raise
    try:
        os.write(descriptor, bytes(4096))
    finally:
        os.close(descriptor)
