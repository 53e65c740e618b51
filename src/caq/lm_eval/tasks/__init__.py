"""Task files for lm-eval, which finds them by `lm_eval --include_path $(caq tasks)`."""

from __future__ import annotations

from pathlib import Path


def task_directory() -> Path:
    """Return the directory of the packaged task files."""
    return Path(__file__).parent
