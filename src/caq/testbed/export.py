"""Writing the bundled pair and its data as ordinary files, so that every command works on it by path."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

from caq.errors import InvalidInput
from caq.files.whole import write_bytes
from caq.items.safety import SafetyTask
from caq.items.tasks import Tasks

#: Tokens that the pair can read.
CONTEXT = 256


def export(out_dir: Path) -> None:
    """Write `aligned/`, `base/` and the data files into `out_dir`, which is made where it is missing.

    Raises:
        InvalidInput: a target exists already; all of them are named, and nothing is written.
    """
    with as_file(files("caq.testbed") / "pair") as pair:
        taken = [source.name for source in sorted(pair.iterdir()) if (out_dir / source.name).exists()]
        if taken:
            raise InvalidInput([f"{out_dir / name} exists: choose an empty directory or remove it" for name in taken])
    complete(out_dir)


def complete(out_dir: Path) -> None:
    """Write what `out_dir` lacks of the pair, every file whole, so that what was stopped goes on; the others stay."""
    with as_file(files("caq.testbed") / "pair") as pair:
        for source in sorted(pair.rglob("*")):
            target = out_dir / source.relative_to(pair)
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
