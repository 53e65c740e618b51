"""Calibration data as a public record tells them: files by name, content and size, never by where they are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from caq.data.blocks import Calibration
from caq.files.content import located
from caq.files.whole import sha256_of
from caq.recipe.sections import DataRecipe


def told_publicly(calibration: Calibration, data: DataRecipe) -> Calibration:
    """Return calibration data whose origin and entries have no directories, as they go into a checkpoint's record.

    The origin gets `files`: sha256 and bytes of each local file they were made of, by name. A directory is one such
    entry: its hash is of the names and hashes in it.
    """
    public = data.public()
    names = {path: name for path, name in ((data.text, public.text), (data.prompts, public.prompts)) if path and name}
    there = {path: name for path, name in names.items() if located(path).exists()}
    files = {name: _content(located(path)) for path, name in there.items()}
    told = {"source": public.text} | ({"prompts": public.prompts} if public.prompts else {})
    origin = {**calibration.origin, **told} | ({"files": files} if files else {})
    entries = tuple(replace(entry, message=_renamed(entry.message, names)) for entry in calibration.entries)
    return replace(calibration, origin=origin, entries=entries)


def _renamed(message: str, names: Mapping[str, str]) -> str:
    for path, name in names.items():
        message = message.replace(path, name)
    return message


def _content(path: Path) -> dict[str, object]:
    if path.is_file():
        return {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    total, size = hashlib.sha256(), 0
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        total.update(f"{file.relative_to(path).as_posix()}\0{sha256_of(file)}\n".encode())
        size += file.stat().st_size
    return {"sha256": total.hexdigest(), "bytes": size}
