"""Prompts that the aligned model answers to make its own calibration data: the bundled ones, or a file's."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from caq.errors import InvalidInput, refuse
from caq.files.content import kind_of, read_text
from caq.files.records import Record, read_records


def calibration_prompts(path: str | Path | None) -> tuple[str, ...]:
    """Return the prompts of a file, one a line or `prompt` of its rows; None: the bundled, generic ones.

    Raises:
        InvalidInput: unreadable, malformed or empty.
    """
    if path is None:
        return _lines(resources.files("caq.data").joinpath("prompts.txt").read_text(encoding="utf-8"))
    if kind_of(Path(path)) != "text":
        records, problems = read_records(Path(path))
        blank = [f"{record.where}: prompt is not a text" for record in records if not _prompt(record)]
        refuse([*problems, *blank])
        return tuple(map(_prompt, records))
    prompts = _lines(read_text(Path(path)))
    if not prompts:
        raise InvalidInput(f"{path}: is empty; give one prompt a line")
    return prompts


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.split("\n") if line.strip())


def _prompt(record: Record) -> str:
    prompt = record.fields.get("prompt")
    return prompt.strip() if isinstance(prompt, str) else ""
