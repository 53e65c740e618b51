"""The cache that runs share: where it is, and how its directories are named."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from caq.errors import InvalidInput
from caq.files.content import located
from caq.files.place import require_possible

OTHER_CACHE = "choose another cache, by --cache or $CAQ_CACHE"


def cache_root(given: str | Path | None = None) -> Path:
    """Return `given`, or else `$CAQ_CACHE`, or else `~/.cache/caq`; it may be one that is for reading only.

    Raises:
        InvalidInput: it can be no directory.
    """
    root = located(given or os.environ.get("CAQ_CACHE") or "~/.cache/caq")
    if str(root).startswith("~"):
        # As where neither $HOME nor the system's list of users says where it is.
        raise InvalidInput(f"{root}: there is no such home directory; {OTHER_CACHE}")
    require_possible(root, OTHER_CACHE)
    return root


def digest(*parts: str | bytes) -> str:
    """Return a short hash of `parts`, for names of cache directories and identities of runs."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()[:20]
