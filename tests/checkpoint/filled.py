"""A directory that looks like a checkpoint from outside: the names that each has, with hashes, and little in them."""

from __future__ import annotations

from pathlib import Path

from caq.checkpoint.manifest import write_hashes


def fill(directory: Path, text: str) -> Path:
    """Write the files and their hashes into a directory that is there."""
    (directory / "sub").mkdir()
    (directory / "model.safetensors").write_text(text)
    (directory / "sub" / "report.json").write_text(text * 2)
    for name in ("config.json", "recipe.yaml", "caq.json"):
        (directory / name).write_text("{}")
    write_hashes(directory)
    return directory
