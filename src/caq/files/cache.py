"""The cache that runs share: where it is, how its directories are named, and files that appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def cache_root(given: str | Path | None = None) -> Path:
    """Return `given`, or else `$CAQ_CACHE`, or else `~/.cache/caq`."""
    return Path(given or os.environ.get("CAQ_CACHE") or "~/.cache/caq").expanduser()


def digest(*parts: str | bytes) -> str:
    """Return a short hash of `parts`, for names of cache directories."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()[:20]


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file, line ends as they are; a reader never sees half of it."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file; a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(content)
    os.replace(partial, path)
