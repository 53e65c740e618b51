"""The bundled pair with few items of every kind, and a checkpoint of it that lost everything to rounding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from transformers.utils import logging

from caq.pipeline import quantize
from caq.reproduce.experiments import BASELINES
from caq.reproduce.pairs import PairSource, bundled, recipe_for
from tests.reproduce.shrunk import QUICK

logging.disable_progress_bar()


def small_pair(directory: Path, count: int) -> PairSource:
    """Write the pair with about `count` items in each of its files; its text is about twenty windows."""
    pair = bundled(directory)
    for name in ("safety", "facts", "prompts"):
        path = directory / f"{name}.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(lines[:: len(lines) // count]), encoding="utf-8")
    text = directory / "heldout.txt"
    text.write_text(text.read_text(encoding="utf-8")[:8000], encoding="utf-8")
    return replace(pair, tasks=replace(pair.tasks, window=128))


def round_to_nearest(pair: PairSource, output: Path, scheme: str = "W4A4") -> Path:
    """Quantize the aligned model without learning, by the table's baseline."""
    recipe = recipe_for(pair, "cal", {**QUICK, **BASELINES["RTN"], "scheme.preset": scheme})
    quantize(pair.model, pair.base, recipe, output, cache_dir=output.parent / "cache", device="cpu", quiet=True)
    return output
