"""What a checkpoint tells of the machine that it was made on: names of files and directories, not where they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def without_places(value: Any, names: Mapping[str, str]) -> Any:
    """Return plain data in which every text has names in place of paths.

    Args:
        value: JSON-ready data.
        names: by path, what is said instead; a longer path goes first.
    """
    if isinstance(value, str):
        for path in sorted(names, key=len, reverse=True):
            value = value.replace(path, names[path])
        return value
    if isinstance(value, Mapping):
        return {key: without_places(item, names) for key, item in value.items()}
    return [without_places(item, names) for item in value] if isinstance(value, list | tuple) else value
