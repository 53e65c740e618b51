"""The cache that runs share: where it is, and how its directories are named."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def cache_root(given: str | Path | None = None) -> Path:
    """Return `given`, or else `$CAQ_CACHE`, or else `~/.cache/caq`."""
    return Path(given or os.environ.get("CAQ_CACHE") or "~/.cache/caq").expanduser()


def digest(*parts: str | bytes) -> str:
    """Return a short hash of `parts`, for names of cache directories and identities of runs."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()[:20]
