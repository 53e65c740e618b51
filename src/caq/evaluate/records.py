"""Records of a JSON or JSON Lines file, each with its place, for readers that report every problem."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caq.errors import InvalidInput


@dataclass(frozen=True)
class Record:
    """One JSON object of a file; `where` names file and line (or position) for messages."""

    where: str
    fields: Mapping[str, Any]


def read_records(path: Path) -> tuple[tuple[Record, ...], tuple[str, ...]]:
    """Read the objects of a `.json` array or of a file with one object a line, and the problems met.

    A `.json` file may also group its objects by category, `{category: [object, ...]}`, as SafetyBench's dev
    files do; each object then receives that `category`.

    Raises:
        InvalidInput: the file cannot be read at all.
    """
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput([f"{path}: {error}; give a UTF-8 JSON or JSON Lines file"]) from error
    numbered = _document(path, text) if path.suffix == ".json" else _lines(path, text)
    records = tuple(record for record in numbered if isinstance(record, Record))
    problems = tuple(problem for problem in numbered if isinstance(problem, str))
    return records, problems if numbered else (f"{path}: no records; give at least one",)


def _lines(path: Path, text: str) -> list[Record | str]:
    # Not splitlines(): U+2028 and its kin are allowed inside JSON strings.
    lines = enumerate(text.split("\n"), start=1)
    return [_line(f"{path}:{number}", line) for number, line in lines if line.strip()]


def _line(where: str, line: str) -> Record | str:
    try:
        return _record(where, _text_only(line, json.loads(line)))
    except (ValueError, RecursionError) as error:
        return f"{where}: not JSON ({error}); each line holds one object"


def _text_only(source: str, value: object) -> object:
    """Return the value, or raise ValueError where an escape stands for half a character, which no tokenizer reads."""
    if "\\ud" in source or "\\uD" in source:
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _document(path: Path, text: str) -> list[Record | str]:
    try:
        document = _text_only(text, json.loads(text))
    except (ValueError, RecursionError) as error:
        return [f"{path}: not JSON ({error}); for one object a line, name the file .jsonl"]
    if isinstance(document, dict):
        document = [_with_category(entry, name) for name, group in document.items() for entry in _group(group)]
    if not isinstance(document, list):
        return [f"{path}: holds neither an array of objects nor categories of them"]
    return [_record(f"{path}: record {number}", entry) for number, entry in enumerate(document, start=1)]


def _group(group: object) -> list[object]:
    return group if isinstance(group, list) else [group]


def _with_category(entry: object, name: str) -> object:
    return {"category": name, **entry} if isinstance(entry, dict) else entry


def _record(where: str, value: object) -> Record | str:
    return Record(where, value) if isinstance(value, dict) else f"{where}: not an object but {json.dumps(value)[:60]}"
