"""The pairs that tables are made on: the paper's four by their hub names, the bundled one, a directory that describes
itself, or any `ALIGNED:BASE`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from caq.checkpoint.inspect import read_json
from caq.errors import InvalidInput, nearest
from caq.files.codec import decode
from caq.files.content import located
from caq.items.safety import SafetyTask
from caq.items.tasks import Tasks
from caq.lm_eval.harness import Benchmarks
from caq.recipe import SELF, Recipe, preset
from caq.testbed.export import complete, data_tasks

Settings = Mapping[str, object]

#: The text of the paper's perplexity and its benchmark; both come from the hub when a table is run.
PAPER_TASKS = Tasks(Path("wikitext2-test"), SafetyTask(Path("safetybench-en"), protocols=("option-text",)))
HUB_TEXTS = {"plain": "wikitext2", "chat": "ultrachat", "self": "self"}
#: Sizes for 2.4 million parameters and a context of 256 tokens. Every arm with rotations starts from the same one, so
#: that arms differ in what is learned alone.
BUNDLED_SIZES: Settings = {
    "data.samples": 128,
    "data.length": 128,
    "transforms.residual-rotation.start": "hadamard",
    "learn.end-to-end.steps": 60,
    "learn.end-to-end.batch_size": 16,
    "learn.end-to-end.micro_batch_size": 16,
    "learn.end-to-end.validation_samples": 32,
    "learn.end-to-end.gradient_checkpointing": False,
    "learn.local.validation_samples": 32,
    "learn.blockwise.epochs": 5,
    "learn.blockwise.batch_size": 16,
    "learn.blockwise.validation_samples": 32,
    "learn.refine.steps": 60,
    "learn.refine.batch_size": 16,
    "learn.refine.micro_batch_size": 16,
    "learn.refine.validation_samples": 32,
    "learn.refine.gradient_checkpointing": False,
    "learn.q-resafe.micro_batch_size": 16,
    "learn.q-resafe.validation_samples": 32,
    "learn.q-resafe.gradient_checkpointing": False,
    "dtype": "float32",
}


@dataclass(frozen=True)
class PairSource:
    """Where a pair's models and data come from.

    Attributes:
        name: as the tables call it.
        settings: overrides of the preset that fit it.
        texts: calibration text by kind, as overrides.
        paper: the model of the paper's tables whose figures stand beside ours.
        measures: by the paper's name of a measure, ours, where they differ.
        benchmarks: lm-eval's, by the paper's name of the measure.
        note: why its figures do not compare with the paper's; empty where they do.
    """

    name: str
    model: str
    base: str
    tasks: Tasks
    settings: Settings
    texts: Mapping[str, Settings]
    paper: str | None = None
    measures: Mapping[str, str] = field(default_factory=dict)
    benchmarks: Mapping[str, Benchmarks] = field(default_factory=dict)
    note: str = ""


#: The paper's models: hub names of the aligned model and its base.
HUB_PAIRS: Mapping[str, tuple[str, str]] = {
    "Llama-3.1-8B": ("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B"),
    "Llama-2-7B": ("meta-llama/Llama-2-7b-chat-hf", "meta-llama/Llama-2-7b-hf"),
    "Qwen2-7B": ("Qwen/Qwen2-7B-Instruct", "Qwen/Qwen2-7B"),
    "Mistral-7B-v0.1": ("mistralai/Mistral-7B-Instruct-v0.1", "mistralai/Mistral-7B-v0.1"),
}
PAPER_NAMES: Mapping[str, str] = {"Llama-3.1-8B": "LLaMA3.1-8B", "Llama-2-7B": "LLaMA2-7B"}
BUNDLED = "bundled"
DESCRIPTION = "pair.json"
PLAIN = "plain"


def open_source(name: str, directory: Path, tasks: Tasks | None = None) -> PairSource:
    """Return a pair by name: `bundled`, a key of `HUB_PAIRS`, a directory with `pair.json`, or `ALIGNED:BASE`, two
    directories or hub names.

    The bundled pair is written into `directory` first; `tasks` are measured instead of the paper's benchmarks.

    Raises:
        InvalidInput: no such pair.
    """
    if name == BUNDLED:
        return bundled(directory, tasks)
    if (located(name) / DESCRIPTION).is_file():
        return read_directory(located(name), tasks)
    aligned, colon, base = name.partition(":")
    known = HUB_PAIRS.get(name)
    if known is None and not (aligned and colon and base):
        raise InvalidInput(
            f"{name}: no such pair{nearest(name, (BUNDLED, *HUB_PAIRS))}; or give a pair's directory, or ALIGNED:BASE"
        )
    aligned, base = known or (aligned, base)
    texts = {kind: {"data.text": text} for kind, text in HUB_TEXTS.items()}
    return PairSource(
        name, aligned, base, tasks or PAPER_TASKS, {}, texts,
        paper=PAPER_NAMES.get(name, name) if known else None,
        measures={"mmlu": "ability/mmlu"}, benchmarks={"mmlu": Benchmarks(("mmlu",))},
    )  # fmt: skip


def read_directory(directory: Path, tasks: Tasks | None = None) -> PairSource:
    """Return the pair in a directory: `aligned`, `base`, `pair.json`, and the data that this names or that is there.

    `heldout.txt`, `safety.jsonl`, `facts.jsonl` and `prompts.jsonl` are what is measured, as far as they are there.

    Raises:
        InvalidInput: `pair.json` is not as `_Description` has it.
    """
    file = directory / DESCRIPTION
    described = decode(_Description, read_json(file), str(file))
    found = {path.name: path for path in directory.iterdir()}
    questions = found.get("safety.jsonl")
    measured = Tasks(
        found.get("heldout.txt"), SafetyTask(questions) if questions else None, found.get("facts.jsonl"),
        found.get("prompts.jsonl"), described.window, described.response_tokens,
    )  # fmt: skip
    texts = {kind: _text(kind, str(directory / name)) for kind, name in described.texts.items()}
    settings = {**described.settings, **texts.get(PLAIN, {})}
    return PairSource(
        directory.name, str(directory / "aligned"), str(directory / "base"), tasks or measured, settings, texts,
        note=described.note,
    )  # fmt: skip


@dataclass(frozen=True)
class _Description:
    """`pair.json`.

    Attributes:
        window: tokens of the text that are read at once.
        response_tokens: longest response.
        settings: overrides of a preset that fit the pair.
        texts: files in the directory to calibrate on, by kind: `plain` is the default, `self` prompts to answer.
        note: what to know of its figures.
    """

    window: int
    response_tokens: int
    settings: dict[str, Any]
    texts: dict[str, str]
    note: str = ""


def _text(kind: str, file: str) -> Settings:
    return {"data.text": SELF, "data.prompts": file} if kind == SELF else {"data.text": file}


def recipe_for(pair: PairSource, preset_name: str, settings: Settings | None = None) -> Recipe:
    """Return a preset with the sizes that fit the pair, and further overrides.

    Those of transforms and learners that the preset does not have are left out.
    """
    chosen = preset(preset_name)
    own = {"transforms": chosen.transforms, "learn": chosen.learn}
    return chosen.with_overrides({**own, **pair.settings, **(settings or {})})


def bundled(directory: Path, tasks: Tasks | None = None) -> PairSource:
    """Return the bundled pair; what `directory` lacks of it is written there."""
    complete(directory)
    plain = {"data.text": str(directory / "calibration.txt")}
    texts = {
        "plain": plain,
        "chat": {"data.text": str(directory / "chat.jsonl")},
        "self": {"data.text": "self", "data.prompts": str(directory / "openers.txt")},
    }
    sizes = {**BUNDLED_SIZES, **plain}
    return PairSource(
        BUNDLED, str(directory / "aligned"), str(directory / "base"), tasks or data_tasks(directory), sizes, texts,
        paper="LLaMA3.1-8B", measures={"mmlu": "facts"},
        note="the bundled pair is no LLaMA3.1-8B, its safety questions are not SafetyBench and its facts are not MMLU: "
        "the paper's figures stand there for the direction only",
    )  # fmt: skip
