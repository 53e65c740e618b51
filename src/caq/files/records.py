"""Records of a JSON or JSON Lines file, each with its place, for readers that report every problem."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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
        raise InvalidInput(f"{path}: {error}; give a UTF-8 JSON or JSON Lines file") from error
    numbered = list(_document(path, text) if path.suffix == ".json" else _lines(path, text))
    records = tuple(record for record in numbered if isinstance(record, Record))
    problems = tuple(problem for problem in numbered if isinstance(problem, str))
    return records, problems if numbered else (f"{path}: no records; give at least one",)


class Object(dict[str, Any]):
    """A JSON object that remembers which keys it was given twice; plain `json` keeps the last value in silence."""

    def __init__(self, pairs: Sequence[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        counts = Counter(name for name, _ in pairs) if len(pairs) > len(self) else {}
        self.repeated = tuple(name for name, count in counts.items() if count > 1)


def parse_json(text: str) -> Any:
    """Return a JSON document whose objects are `Object`s.

    Raises:
        ValueError: it is not JSON, is nested beyond sense, or an escape stands for half a character, which no
            tokenizer reads.
    """
    try:
        value = json.loads(text, object_pairs_hook=Object)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError(str(error)) from error
    return value


def _lines(path: Path, text: str) -> Iterator[Record | str]:
    # Not splitlines(): U+2028 and its kin are allowed inside JSON strings.
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            if line.strip():
                yield from _record(f"{path}:{number}", parse_json(line))
        except ValueError as error:
            yield f"{path}:{number}: not JSON ({error}); each line holds one object"


def _document(path: Path, text: str) -> Iterator[Record | str]:
    try:
        document = parse_json(text)
    except ValueError as error:
        yield f"{path}: not JSON ({error}); for one object a line, name the file .jsonl"
        return
    if isinstance(document, Object):
        yield from _repeated(str(path), document)
        groups = {name: group if isinstance(group, list) else [group] for name, group in document.items()}
        document = [_with_category(entry, name) for name, group in groups.items() for entry in group]
    if not isinstance(document, list):
        yield f"{path}: holds neither an array of objects nor categories of them"
        return
    for number, entry in enumerate(document, start=1):
        yield from _record(f"{path}: record {number}", entry)


def _with_category(entry: object, name: str) -> object:
    if isinstance(entry, Object):
        entry.setdefault("category", name)
    return entry


def _record(where: str, value: object) -> Iterator[Record | str]:
    if isinstance(value, Object):
        yield Record(where, value)
        yield from _repeated(where, value)
    else:
        yield f"{where}: not an object but {json.dumps(value)[:60]}"


def _repeated(where: str, value: Object) -> Iterator[str]:
    for name in value.repeated:
        yield f"{where}: `{name}` is given twice; leave one"
