"""Calibration data as a public record tells them: files by name, content and size, never by where they are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from caq.data.blocks import Calibration
from caq.files.content import located
from caq.files.whole import sha256_of
from caq.recipe.sections import DataRecipe


def told_publicly(calibration: Calibration, data: DataRecipe) -> Calibration:
    """Return calibration data whose origin and entries have no directories, as they go into a checkpoint's record.

    The origin gets `files`: sha256 and bytes of each local file they were made of, by name. A directory is one such
    entry: its hash is of the names and hashes in it.
    """
    names = data.public_names()
    there = {path: name for path, name in names.items() if located(path).exists()}
    files = {name: _content(located(path)) for path, name in there.items()}
    origin = _told(calibration.origin, {**names, data.text: data.public().text}) | ({"files": files} if files else {})
    entries = tuple(replace(entry, message=_renamed(entry.message, names)) for entry in calibration.entries)
    return replace(calibration, origin=origin, entries=entries)


def _told(origin: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    told = {**origin, **{key: names[origin[key]] for key in ("source", "prompts") if origin.get(key) in names}}
    return told | ({"parts": [_told(part, names) for part in origin["parts"]]} if "parts" in origin else {})


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
