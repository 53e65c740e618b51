"""Locks between processes: an output has one writer, and the others are refused; a cache's entry has one at a time.

A lock is `flock` on a file made for it, which the system releases when its holder dies, however it dies. The file is
deleted by its holder, so that nothing stays behind; one that a killed process left is taken over.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from caq.errors import InvalidInput
from caq.files.cache import OTHER_CACHE
from caq.files.place import require_directory
from caq.files.whole import sweep_directory

#: Some network file systems cannot lock.
_CANNOT_LOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def locked(target: Path, lock: Path) -> Iterator[None]:
    """Hold `target` for this process.

    Args:
        target: what is held, for messages.
        lock: the file that stands for it; its directory is made where it is missing.

    Raises:
        InvalidInput: another process holds it, or the lock cannot be made.
    """
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        problem = f"{target}: {_holder(lock)} is writing here; wait until it has ended, or choose another output"
        raise InvalidInput(problem) from error
    except OSError as error:
        raise InvalidInput(f"{target}: cannot be written and locked ({error}); choose another output") from error
    try:
        yield
    finally:
        _release(lock, descriptor)


@contextmanager
def turn(directory: Path) -> Iterator[None]:
    """Wait until no other process writes in a directory of the cache, then hold it, free of what killed writers left.

    Where the file system cannot lock, nobody waits: files that appear whole are still right, only written twice.

    Raises:
        InvalidInput: nothing can be written there.
    """
    lock = directory / ".lock"
    require_directory(directory, OTHER_CACHE)
    directory.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = _acquire(lock, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _CANNOT_LOCK:
            raise
        yield
        return
    try:
        sweep_directory(directory)
        yield
    finally:
        _release(lock, descriptor)


class Hold:
    """Keeps a directory of the cache from being cleared, for as long as this object lives."""

    def __init__(self, directory: Path) -> None:
        self._descriptor = os.open(directory, os.O_RDONLY)
        with suppress(OSError):
            # Where the file system cannot lock, nothing is held.
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def __del__(self) -> None:
        os.close(self._descriptor)


@contextmanager
def alone(path: Path) -> Iterator[bool]:
    """Yield whether nobody holds or writes an entry of the cache, a directory or a file; nobody comes in meanwhile."""
    with ExitStack() as held:
        yield all(_free(place, held) for place in (path, path / ".lock") if place.exists())


def _free(path: Path, held: ExitStack) -> bool:
    """Lock what is there, for as long as the stack lasts; return whether that could be done."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        held.callback(os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _acquire(lock: Path, operation: int) -> int:
    """Return a descriptor of the locked file, which says who holds it."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, operation)
            # Its holder may have deleted it since it was opened, and a lock on a deleted file locks nobody out.
            if _is_same(descriptor, lock):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_same(descriptor: int, lock: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(lock))
    except FileNotFoundError:
        return False


def _release(lock: Path, descriptor: int) -> None:
    with suppress(OSError):
        lock.unlink()
    os.close(descriptor)


def _holder(lock: Path) -> str:
    try:
        return lock.read_text(encoding="utf-8") or "another process"
    except (OSError, ValueError):
        return "another process"
