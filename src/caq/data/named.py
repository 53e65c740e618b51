"""Calibration data as a public record tells them: files by name, content and size, never by where they are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from caq.files.whole import sha256_of
from caq.recipe.sections import DataRecipe


def public_origin(data: DataRecipe, origin: Mapping[str, object]) -> dict[str, object]:
    """Return what calibration data are, with `files`: name, sha256 and bytes of each local file they were made of.

    A directory is one such entry: its hash is of the names and hashes in it.
    """
    public = data.public()
    given = {name: path for name, path in ((public.text, data.text), (public.prompts, data.prompts)) if name and path}
    files = {
        name: _content(Path(path).expanduser()) for name, path in given.items() if Path(path).expanduser().exists()
    }
    told = {"source": public.text} | ({"prompts": public.prompts} if public.prompts else {})
    return {**origin, **told} | ({"files": files} if files else {})


def _content(path: Path) -> dict[str, object]:
    if path.is_file():
        return {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    total, size = hashlib.sha256(), 0
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        total.update(f"{file.relative_to(path).as_posix()}\0{sha256_of(file)}\n".encode())
        size += file.stat().st_size
    return {"sha256": total.hexdigest(), "bytes": size}
