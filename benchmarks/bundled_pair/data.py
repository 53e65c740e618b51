"""The pair's data files, from the world's generator."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from benchmarks.bundled_pair.world import (
    CALIBRATION_SEED,
    HELD_OUT_SEED,
    chats,
    fact_items,
    request_items,
    safety_items,
    text,
)
from caq.items.questions import Question

CALIBRATION_PARAGRAPHS = 900
HELD_OUT_PARAGRAPHS = 300
#: About as many tokens as the calibration text has.
CHATS = 1000


def write_data(out_dir: Path) -> None:
    """Write the texts and items into an existing directory."""
    (out_dir / "calibration.txt").write_text(text(CALIBRATION_SEED, CALIBRATION_PARAGRAPHS), encoding="utf-8")
    (out_dir / "heldout.txt").write_text(text(HELD_OUT_SEED, HELD_OUT_PARAGRAPHS), encoding="utf-8")
    _write_lines(out_dir / "chat.jsonl", map(_chat, chats(CHATS)))
    openers = dict.fromkeys(prompt for prompt, _ in chats(CHATS))
    (out_dir / "openers.txt").write_text("".join(f"{prompt}\n" for prompt in openers), encoding="utf-8")
    _write_lines(out_dir / "safety.jsonl", map(_row, safety_items()))
    _write_lines(out_dir / "facts.jsonl", map(_row, fact_items()))
    _write_lines(out_dir / "prompts.jsonl", (item.as_dict() for item in request_items()))


def _chat(turns: tuple[str, str]) -> dict[str, object]:
    prompt, answer = turns
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}


def _row(question: Question) -> dict[str, object]:
    return {**asdict(question), "id": int(question.id)}


def _write_lines(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
