"""Where a checkpoint can go, known before anything is computed, and what it may replace there: only what CAQ wrote."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from caq.checkpoint.manifest import HASHES, contents, foreign
from caq.errors import InvalidInput, attempt, refuse, some
from caq.files.content import located
from caq.files.place import require_replaceable

ELSEWHERE = "choose another output"


def find_output(given: Path, apart_from: Mapping[str, Path]) -> Path:
    """Return the directory that is meant, absolute and without links, once a checkpoint can be put there.

    What is in it is `require_ours`'s question. Nothing is made.

    Args:
        given: the directory, which need not exist; a link to a directory means that directory.
        apart_from: what must not lie in the output, nor the output in it, by its name in a sentence.

    Raises:
        InvalidInput: a file, a mount or a broken link in the way, a name that is too long, a place where nothing can
            be written, or one that overlaps with what the run reads.
    """
    given = located(given)
    # `os.path` has an answer for names that are too long, too.
    if os.path.islink(given) and not os.path.exists(given):
        raise InvalidInput(f"{given}: is a link to {os.readlink(given)}, which is not there; make that, or {ELSEWHERE}")
    target = given.resolve()
    problems = [*_in_the_way(target)]
    attempt(problems, lambda: require_replaceable(target, ELSEWHERE))
    problems += _overlaps(target, apart_from)
    refuse(problems)
    return target


def require_ours(target: Path) -> None:
    """Check that replacing a directory loses nothing: it is not there, empty, or all in it is what CAQ wrote.

    Raises:
        InvalidInput: it is a file, or holds what CAQ did not write.
    """
    if not target.exists():
        return
    if not target.is_dir():
        raise InvalidInput(f"{target}: is a file; choose a new directory for the output")
    there = contents(target)
    if not there:
        return
    ours = HASHES in there
    strange = foreign(target) if ours else sorted(there)
    if strange:
        way_out = "move them elsewhere" if ours else "choose a new or empty directory"
        problem = "has files that CAQ did not write and would delete"
        raise InvalidInput(f"{target}: {problem}: {some(strange)}; {way_out}, or {ELSEWHERE}")


def previous(target: Path) -> Path:
    """Return where a directory is while its successor takes its place."""
    return target.with_name(f".{target.name}.previous")


def _in_the_way(target: Path) -> Iterator[str]:
    if os.path.ismount(target):
        yield f"{target}: is a mount, which nothing can take the place of; choose a directory inside of it"
        return
    if os.path.isdir(target) and not os.access(target, os.W_OK | os.X_OK):
        yield f"{target}: what is in it cannot be replaced (no permission to write); {ELSEWHERE}"
    if os.path.isfile(target):
        yield f"{target}: is a file; choose a new directory for the output"
    for beside in (previous(target), target.with_name(f".{target.name}.work")):
        if os.path.exists(beside) and not beside.is_dir():
            yield f"{beside}: is a file where a run keeps a directory; move it, or {ELSEWHERE}"


def _overlaps(target: Path, apart_from: Mapping[str, Path]) -> Iterator[str]:
    for name, path in apart_from.items():
        other = located(path).resolve()
        if target == other:
            yield f"{target}: is {name} itself; {ELSEWHERE}"
        elif other in target.parents:
            yield f"{target}: lies inside of {name}, {other}; {ELSEWHERE}"
        elif target in other.parents:
            yield f"{target}: would take the place of {name}, {other}; {ELSEWHERE}"
