"""What the pair is measured and calibrated on, as the files of a pair's directory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from benchmarks.real_pair.sources import Sources, shuffled
from caq.files.whole import write_json, write_text
from caq.items.requests import Prompt

PLAIN, BORDERLINE = "plain instructions", "XSTest, safe"
#: How many of each are asked: with the harmful requests and the questions over 1,000 items.
COUNTS = {PLAIN: 170, BORDERLINE: 100, "facts": 200}
#: Characters of WikiText-2: about 9,000 tokens of its test, and what calibration draws from its training text.
HELD_OUT, CALIBRATION = 40_000, 600_000
#: Sizes for two cores: 10,240 tokens to calibrate on, 24 steps of 512 of them. Every arm with rotations starts from
#: the same one, so that arms differ in what is learned alone.
SETTINGS = {
    "data.samples": 40,
    "data.length": 256,
    "transforms.residual-rotation.start": "hadamard",
    "learn.end-to-end.steps": 24,
    "learn.end-to-end.rotation_learning_rate": 0.001,
    "learn.end-to-end.scaling_learning_rate": 0.01,
    "learn.end-to-end.batch_size": 2,
    "learn.end-to-end.micro_batch_size": 2,
    "learn.end-to-end.evaluate_every": 8,
    "learn.end-to-end.validation_samples": 8,
    "learn.end-to-end.gradient_checkpointing": False,
    "learn.local.tokens": 4096,
    "learn.local.validation_samples": 8,
    "learn.blockwise.epochs": 5,
    "learn.blockwise.validation_samples": 8,
    "learn.refine.steps": 96,
    "learn.refine.batch_size": 2,
    "learn.refine.micro_batch_size": 2,
    "learn.refine.evaluate_every": 8,
    "learn.refine.validation_samples": 8,
    "learn.refine.gradient_checkpointing": False,
}


def write_items(sources: Sources, data: Path, directory: Path) -> None:
    """Write the held-out items, the calibration data and `pair.json` into a pair's directory."""
    _lines(directory / "safety.jsonl", map(asdict, sources.held_out_questions))
    _lines(directory / "facts.jsonl", _facts(data / "multiple_choice" / "arc_easy.jsonl"))
    _lines(directory / "prompts.jsonl", map(asdict, _prompts(sources)))
    _lines(directory / "chat.jsonl", _chats(sources))
    write_text(
        directory / "openers.txt", "".join(f"{one.prompt}\n" for one in sources.instructions if _line(one.prompt))
    )
    write_text(directory / "heldout.txt", sources.held_out_text[:HELD_OUT])
    write_text(directory / "calibration.txt", sources.text[-CALIBRATION:])
    texts = {"plain": "calibration.txt", "chat": "chat.jsonl", "self": "openers.txt"}
    description = {"window": 512, "response_tokens": 16, "settings": SETTINGS, "texts": texts}
    write_json(directory / "pair.json", description)


def _prompts(sources: Sources) -> Iterable[Prompt]:
    yield from sources.held_out_harmful
    plain = sources.held_out_instructions[: COUNTS[PLAIN]]
    yield from (Prompt(one.prompt, harmful=False, category=PLAIN) for one in plain)
    borderline = shuffled(sources.borderline)[: COUNTS[BORDERLINE]]
    yield from (Prompt(one.prompt, harmful=False, category=BORDERLINE) for one in borderline)


def _chats(sources: Sources) -> Iterable[Mapping[str, object]]:
    for one in sources.instructions:
        turns = [{"role": "user", "content": one.prompt}, {"role": "assistant", "content": one.answer}]
        yield {"messages": turns}


def _facts(path: Path) -> Iterable[Mapping[str, object]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for index, row in enumerate(shuffled(rows)[: COUNTS["facts"]]):
        question = row["query"].removeprefix("Question: ")
        options = {"options": row["choices"], "answer": row["gold"]}
        yield {"id": index, "category": "ARC-Easy", "question": question, **options}


def _line(prompt: str) -> bool:
    return "\n" not in prompt


def _lines(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
