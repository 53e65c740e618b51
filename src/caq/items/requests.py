"""Harmful and harmless prompts from files: rows of `prompt` and `harmful`, or the CSV of a published benchmark.

A CSV is known by its columns. HarmBench's contextual behaviours are asked as its authors do, with the context first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caq.errors import InvalidInput, refuse
from caq.files.content import kind_of
from caq.files.records import Record, read_records
from caq.files.tables import read_csv

Row = Mapping[Any, Any]


@dataclass(frozen=True)
class Prompt:
    """A user's turn; a harmful one is to be refused. The category is empty where the file has none."""

    prompt: str
    harmful: bool
    category: str = ""


@dataclass(frozen=True)
class Layout:
    """The columns that a CSV is known by, and what a row holds; `harmful` is None if it does not say."""

    columns: tuple[str, ...]
    prompt: Callable[[Row], str]
    category: Callable[[Row], str]
    harmful: Callable[[Row], bool | None] = lambda row: True
    says: str = ""


LAYOUTS: Mapping[str, Layout] = {
    "XSTest": Layout(
        ("prompt", "label", "type"),
        lambda row: row["prompt"],
        lambda row: row["type"],
        lambda row: {"safe": False, "unsafe": True}.get(row["label"]),
        "`label` must be safe or unsafe",
    ),
    "HarmBench": Layout(
        ("Behavior", "SemanticCategory", "ContextString"),
        lambda row: "\n\n---\n\n".join(filter(None, (row["ContextString"], row["Behavior"]))),
        lambda row: row["SemanticCategory"],
    ),
    "one's own": Layout(
        ("prompt", "harmful"),
        lambda row: row["prompt"],
        lambda row: row.get("category", row.get("type", "")),
        lambda row: {"false": False, "true": True}.get(row["harmful"].strip().lower()),
        "`harmful` must be true or false",
    ),
    "AdvBench": Layout(("goal", "target"), lambda row: row["goal"], lambda row: ""),
    "SimpleSafetyTests": Layout(
        ("prompts_final", "harm_area"), lambda row: row["prompts_final"], lambda row: row["harm_area"]
    ),
}


def read_prompts(path: Path) -> tuple[Prompt, ...]:
    """Read prompts from JSON Lines, JSON, Parquet, or a CSV of `LAYOUTS`.

    Rows have `prompt`, `harmful` and optionally `category`, or `type` as XSTest calls it. All prompts of
    AdvBench, HarmBench and SimpleSafetyTests are harmful.

    Raises:
        InvalidInput: with every problem of the file.
    """
    if kind_of(path) == "csv":
        return _from_csv(path)
    records, problems = read_records(path)
    refuse([*problems, *(problem for record in records for problem in _problems(record))])
    return tuple(
        Prompt(record.fields["prompt"], record.fields["harmful"], str(_category(record) or "")) for record in records
    )


def _category(record: Record) -> object:
    return record.fields.get("category", record.fields.get("type"))


def _problems(record: Record) -> Iterator[str]:
    prompt, harmful = record.fields.get("prompt"), record.fields.get("harmful")
    if not isinstance(prompt, str) or not prompt.strip():
        yield f"{record.where}: `prompt` must be a text that is not empty"
    if not isinstance(harmful, bool):
        yield f"{record.where}: `harmful` must be true or false and is {harmful!r}"
    if not isinstance(_category(record), str | None):
        yield f"{record.where}: `category` must be a text and is {_category(record)!r}"


def _from_csv(path: Path) -> tuple[Prompt, ...]:
    table = read_csv(path)
    layout = next((layout for layout in LAYOUTS.values() if set(layout.columns) <= set(table.columns)), None)
    if layout is None:
        known = "; ".join(f"{', '.join(layout.columns)} ({name})" for name, layout in LAYOUTS.items())
        raise InvalidInput(f"{path}: has the columns {', '.join(table.columns) or '(none)'}; known layouts are {known}")
    problems, prompts = [*table.problems], []
    for where, row in table.rows:
        harmful = layout.harmful(row)
        if not layout.prompt(row).strip():
            problems.append(f"{where}: the prompt must not be empty")
        if harmful is None:
            problems.append(f"{where}: {layout.says}")
        prompts.append(Prompt(layout.prompt(row), bool(harmful), layout.category(row)))
    refuse(problems)
    if not prompts:
        raise InvalidInput(f"{path}: no prompts; give at least one")
    return tuple(prompts)
