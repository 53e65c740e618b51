"""Multiple-choice questions in SafetyBench's fields: `id`, `category`, `question`, `options`, `answer`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from caq.errors import refuse
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
    """Read questions from JSON Lines, JSON or Parquet.

    `id` is a number or a text, by default the position; `answer` the right option's index, letter or text.

    Raises:
        InvalidInput: with every problem of the file: a line that is not JSON, a missing or mistyped field,
            fewer than two options, an answer outside the options, a repeated id.
    """
    return parse_questions(*read_records(path))


def parse_questions(records: Sequence[Record], problems: Sequence[str]) -> tuple[Question, ...]:
    """Return the questions that records hold; `problems`, met before, are raised with those of the records.

    Raises:
        InvalidInput: as `read_questions`.
    """
    ids = [str(record.fields.get("id", position)) for position, record in enumerate(records)]
    own = [problem for record in records for problem in _problems(record)]
    refuse([*problems, *own, *_repeated(records, ids)])
    rows = zip(ids, [record.fields for record in records], strict=True)
    return tuple(
        Question(
            name, row["category"], row["question"], tuple(row["options"]), meanings(row["answer"], row["options"])[0]
        )
        for name, row in rows
    )


def meanings(answer: object, options: Sequence[object]) -> list[int]:
    """Return the options that an answer may mean, by their index, letter or text: one, if it is a good answer."""
    if isinstance(answer, int) and not isinstance(answer, bool):
        return [answer] if 0 <= answer < len(options) else []
    if not isinstance(answer, str):
        return []
    word = answer.strip()
    letters = [place for place, letter in enumerate(LETTERS[: len(options)]) if word in (letter, f"({letter})")]
    texts = [place for place, option in enumerate(options) if isinstance(option, str) and option.strip() == word]
    return sorted({*letters, *texts}) if word else []


def _repeated(records: Sequence[Record], ids: list[str]) -> Iterator[str]:
    first: dict[str, str] = {}
    for record, name in zip(records, ids, strict=True):
        if name in first:
            yield f"{record.where}: id {name} is also at {first[name]}; ids are unique within a file"
        first.setdefault(name, record.where)


def _problems(record: Record) -> list[str]:
    fields, where = record.fields, record.where
    empty = [name for name in ("category", "question") if not _is_text(fields.get(name))]
    problems = [f"{where}: `{name}` must be a text that is not empty" for name in empty]
    if not isinstance(fields.get("id", 0), int | str) or isinstance(fields.get("id"), bool):
        problems.append(f"{where}: `id` must be a number or a text")
    return problems + _option_problems(fields.get("options"), where) + _answer_problems(record)


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
    if not isinstance(answer, int | str) or isinstance(answer, bool):
        return [f"{record.where}: `answer` must be the option's index, 0 for the first, and is {answer!r}"]
    found = meanings(answer, options) if isinstance(options, list) else [0]
    if not found and isinstance(options, list):
        counted = "counted from 0" if isinstance(answer, int) else "by letter or by text"
        return [f"{record.where}: answer {answer} is none of the {len(options)} options, {counted}"]
    if len(found) > 1:
        which = ", ".join(LETTERS[place] for place in found)
        return [f"{record.where}: answer {answer} may be any of the options {which}; give the index, 0 for the first"]
    return []


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
