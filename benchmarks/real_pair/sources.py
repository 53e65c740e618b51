"""What the pair is aligned and measured on: public data in `../shared/data`, each read from its own file."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from caq.items.questions import Question, read_questions
from caq.items.requests import Prompt, read_prompts
from caq.items.safetybench import read_examples

T = TypeVar("T")

#: Of 1,100 instructions, those that are kept from training.
HELD_OUT_INSTRUCTIONS = 250
#: Of 500 questions with answers, those that are trained on, besides SafetyBench's own 35 examples.
TRAINED_QUESTIONS = 265


@dataclass(frozen=True)
class Instruction:
    """A plain request and a good answer."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Sources:
    """All data, split once and for all: what is trained on and what is measured on share no item.

    Attributes:
        harmful: AdvBench, and HarmBench without its questions of copyright.
        instructions, held_out_instructions: of LLMs-from-scratch.
        questions, held_out_questions: of SafetyBench in English.
        held_out_harmful: SimpleSafetyTests and XSTest's unsafe prompts, which training sees nothing of.
        borderline: XSTest's safe prompts, which look harmful.
        text, held_out_text: WikiText-2, train and test.
    """

    harmful: tuple[str, ...]
    instructions: tuple[Instruction, ...]
    held_out_instructions: tuple[Instruction, ...]
    questions: tuple[Question, ...]
    held_out_questions: tuple[Question, ...]
    held_out_harmful: tuple[Prompt, ...]
    borderline: tuple[Prompt, ...]
    text: str
    held_out_text: str


def read_sources(data: Path) -> Sources:
    """Read all of it from `../shared/data`."""
    instructions = shuffled(_instructions(data / "llms_from_scratch" / "instruction-data.json"))
    trained = {one.prompt for one in instructions[HELD_OUT_INSTRUCTIONS:]}
    questions = shuffled(read_questions(data / "safetybench" / "safetybench_en_dev500.jsonl"))
    examples = read_examples(data / "safetybench" / "dev_en.json").values()
    xstest = read_prompts(data / "xstest" / "xstest_prompts.csv")
    tests = read_prompts(data / "simple_safety_tests" / "simple_safety_tests.csv")
    return Sources(
        harmful=(*_advbench(data), *_harmbench(data)),
        instructions=instructions[HELD_OUT_INSTRUCTIONS:],
        # Some are in the file twice.
        held_out_instructions=tuple(one for one in instructions[:HELD_OUT_INSTRUCTIONS] if one.prompt not in trained),
        questions=(*questions[:TRAINED_QUESTIONS], *(question for some in examples for question in some)),
        held_out_questions=questions[TRAINED_QUESTIONS:],
        held_out_harmful=(*tests, *(prompt for prompt in xstest if prompt.harmful)),
        borderline=tuple(prompt for prompt in xstest if not prompt.harmful),
        text=(data / "wikitext2" / "wiki.train.part.txt").read_text(encoding="utf-8"),
        held_out_text=(data / "wikitext2" / "wiki.test.raw").read_text(encoding="utf-8"),
    )


def _advbench(data: Path) -> list[str]:
    return [prompt.prompt for prompt in read_prompts(data / "advbench" / "harmful_behaviors.csv")]


def _harmbench(data: Path) -> list[str]:
    with (data / "harmbench" / "harmbench_behaviors_text_all.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["FunctionalCategory"] != "copyright"]
    # A context is as long as ten requests; its request shows what is asked for.
    return [row["Behavior"] for row in rows]


def _instructions(path: Path) -> tuple[Instruction, ...]:
    rows: Sequence[Mapping[str, str]] = json.loads(path.read_text(encoding="utf-8"))
    return tuple(
        Instruction("\n\n".join(filter(None, (row["instruction"], row["input"]))), row["output"]) for row in rows
    )


def shuffled(items: Sequence[T]) -> tuple[T, ...]:
    """Return items in an order of their own, the same every time."""
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(0))
    return tuple(items[index] for index in order.tolist())
