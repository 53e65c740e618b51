"""Records of a file of rows, each with its place, for readers that report every problem."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caq.errors import InvalidInput
from caq.files.content import kind_of, read_text
from caq.files.tables import Table, read_csv, read_parquet


@dataclass(frozen=True)
class Record:
    """One JSON object of a file; `where` names file and line (or position) for messages."""

    where: str
    fields: Mapping[str, Any]


def read_records(path: Path) -> tuple[tuple[Record, ...], tuple[str, ...]]:
    """Read the rows of a JSON array, of a file with one JSON object a line, or of a table, and the problems met.

    A JSON document may also group its objects by category, `{category: [object, ...]}`, as SafetyBench's dev
    files do; each object then receives that `category`.

    Raises:
        InvalidInput: the file cannot be read at all.
    """
    kind = kind_of(path)
    if kind == "text":
        raise InvalidInput(f"{path}: is plain text; give rows, as .jsonl, .json, .csv or .parquet")
    if kind in ("csv", "parquet"):
        numbered = list(_rows(read_csv(path) if kind == "csv" else read_parquet(path)))
    else:
        text = read_text(path)
        numbered = list(_document(path, text) if kind == "json" else _lines(path, text))
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


def _rows(table: Table) -> Iterator[Record | str]:
    yield from (Record(where, fields) for where, fields in table.rows)
    yield from table.problems


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
        # Many a .json of the hub is JSON Lines.
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data" and text.lstrip().startswith("{"):
            yield from _lines(path, text)
        else:
            yield f"{path}: not JSON ({error}); one object a line is read, too"
        return
    if isinstance(document, Object) and not all(isinstance(value, list | Object) for value in document.values()):
        document = [document]
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
