"""The bundled pair with few items, and settings with which a cell takes a second."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

QUICK: Mapping[str, object] = {
    "data.samples": 8,
    "data.length": 64,
    "learn.end-to-end.steps": 3,
    "learn.end-to-end.evaluate_every": 1,
    "learn.end-to-end.batch_size": 2,
    "learn.end-to-end.micro_batch_size": 2,
    "learn.end-to-end.validation_samples": 2,
    "quantizer.clip_steps": 5,
}


def shrink(pair: Path) -> None:
    """Leave a few of every file's items, and the beginning of the text."""
    for name in ("safety", "facts", "prompts"):
        path = pair / f"{name}.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(lines[:: len(lines) // 24]), encoding="utf-8")
    text = pair / "heldout.txt"
    text.write_text(text.read_text(encoding="utf-8")[:8000], encoding="utf-8")
