"""Multiple-choice questions in SafetyBench's fields: `id`, `category`, `question`, `options`, `answer`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from caq.errors import InvalidInput
from caq.files.records import Record, read_records

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Question:
    """One question; `answer` is the index of the right option."""

    id: str
    category: str
    question: str
    options: tuple[str, ...]
    answer: int


def read_questions(path: Path) -> tuple[Question, ...]:
    """Read questions from JSON Lines or JSON; `id` is a number or a text, by default the position.

    Raises:
        InvalidInput: with every problem of the file: a line that is not JSON, a missing or mistyped field,
            fewer than two options, an answer outside the options, a repeated id.
    """
    return parse_questions(*read_records(path))


def parse_questions(records: Sequence[Record], problems: Sequence[str]) -> tuple[Question, ...]:
    """Return the questions that records hold; `problems` were met before and are told with those of the records.

    Raises:
        InvalidInput: as `read_questions`.
    """
    faults = [*problems, *(problem for record in records for problem in _problems(record))]
    ids = [_id(record, position) for position, record in enumerate(records)]
    faults += _repeated(records, ids)
    if faults:
        raise InvalidInput(faults)
    return tuple(_question(record, name) for record, name in zip(records, ids, strict=True))


def _question(record: Record, name: str) -> Question:
    fields = record.fields
    return Question(name, fields["category"], fields["question"], tuple(fields["options"]), fields["answer"])


def _id(record: Record, position: int) -> str:
    return str(record.fields.get("id", position))


def _repeated(records: Sequence[Record], ids: list[str]) -> list[str]:
    first: dict[str, str] = {}
    faults = []
    for record, name in zip(records, ids, strict=True):
        if name in first:
            faults.append(f"{record.where}: id {name} is also at {first[name]}; ids are unique within a file")
        first.setdefault(name, record.where)
    return faults


def _problems(record: Record) -> list[str]:
    fields, where = record.fields, record.where
    faults = [
        f"{where}: `{name}` must be a text that is not empty"
        for name in ("category", "question")
        if not _is_text(fields.get(name))
    ]
    if not isinstance(fields.get("id", 0), int | str) or isinstance(fields.get("id"), bool):
        faults.append(f"{where}: `id` must be a number or a text")
    return faults + _option_problems(fields.get("options"), where) + _answer_problems(record)


def _option_problems(options: object, where: str) -> list[str]:
    if not isinstance(options, list):
        return [f"{where}: `options` must be a list of texts"]
    if not 2 <= len(options) <= len(LETTERS):
        return [f"{where}: {len(options)} options; a question has 2 to {len(LETTERS)}"]
    return [
        f"{where}: option {LETTERS[index]} must be a text that is not empty"
        for index, option in enumerate(options)
        if not _is_text(option)
    ]


def _answer_problems(record: Record) -> list[str]:
    answer, options = record.fields.get("answer"), record.fields.get("options")
    if answer is None:
        return [f"{record.where}: no `answer`; join the answer file, 0 for the first option"]
    if not isinstance(answer, int) or isinstance(answer, bool):
        return [f"{record.where}: `answer` must be the option's index, 0 for the first, and is {answer!r}"]
    if isinstance(options, list) and not 0 <= answer < len(options):
        return [f"{record.where}: answer {answer} is none of the {len(options)} options, counted from 0"]
    return []


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
