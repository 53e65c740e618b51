"""Writing the bundled pair and its data as ordinary files, so that every command works on it by path."""

from __future__ import annotations

import filecmp
import os
from importlib.resources import as_file, files
from pathlib import Path

from caq.errors import refuse
from caq.files.lock import locked
from caq.files.place import require_directory
from caq.files.whole import is_partial, sweep, write_bytes
from caq.items.safety import SafetyTask
from caq.items.tasks import Tasks

#: Tokens that the pair can read.
CONTEXT = 256


def export(out_dir: Path) -> None:
    """Write `aligned/`, `base/` and the data files into `out_dir`, which is made where it is missing.

    What a killed export left goes on.

    Raises:
        InvalidInput: other files have these names, all of which are told; or nothing can be written there. Nothing is
            written then.
    """
    require_directory(out_dir, "choose another directory")
    with as_file(files("caq.testbed") / "pair") as pair:
        there = ((source, out_dir / source.name) for source in sorted(pair.iterdir()))
        taken = [target for source, target in there if os.path.lexists(target) and not _is_ours(source, target)]
        refuse([f"{target} exists: choose an empty directory or remove it" for target in taken])
    with locked(out_dir, out_dir / ".lock"):
        complete(out_dir)


def _is_ours(source: Path, target: Path) -> bool:
    """Return whether what is there was written from `source`, as far as it is there."""
    if not source.is_dir():
        return source.exists() and target.is_file() and filecmp.cmp(source, target, shallow=False)
    kept = (path for path in target.iterdir() if not is_partial(path)) if target.is_dir() else ()
    return target.is_dir() and all(_is_ours(source / path.name, path) for path in kept)


def complete(out_dir: Path) -> None:
    """Write what `out_dir` lacks of the pair, every file whole, so that what was stopped goes on; the others stay."""
    with as_file(files("caq.testbed") / "pair") as pair:
        for source in sorted(pair.rglob("*")):
            target = out_dir / source.relative_to(pair)
            sweep(target)
            if source.is_file() and not target.exists():
                write_bytes(target, source.read_bytes())


def data_tasks(directory: Path) -> Tasks:
    """Return what is measured on an exported pair: everything."""
    return Tasks(
        perplexity_text=directory / "heldout.txt",
        safety=SafetyTask(directory / "safety.jsonl"),
        facts=directory / "facts.jsonl",
        prompts=directory / "prompts.jsonl",
        window=CONTEXT,
        # A refusal shows in its first words.
        max_new_tokens=12,
    )
