"""SafetyBench's questions, answers and solved examples: from the hub by name, or from local files in its fields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from caq.errors import InvalidInput, nearest
from caq.files.content import located, read_text
from caq.files.records import Object, Record, parse_json, read_records
from caq.items.questions import Question, meanings, parse_questions
from caq.items.safetybench_files import find_file

CATEGORIES = (
    "Offensiveness", "Unfairness and Bias", "Physical Health", "Mental Health", "Illegal Activities",
    "Ethics and Morality", "Privacy and Property",
)  # fmt: skip
MOST_OPTIONS = 4
#: What the names stand for: the test file's suffix and the language. The subset is the Chinese questions without
#: those that a provider's filter might stop.
NAMES: Mapping[str, tuple[str, str]] = {
    "safetybench-en": ("en", "en"),
    "safetybench-zh": ("zh", "zh"),
    "safetybench-zh-subset": ("zh_subset", "zh"),
}

#: `category` and `answer` by a question's id.
Answers = Mapping[str, Mapping[str, Any]]


def read_safetybench(source: Path, answers: Path | None = None) -> tuple[Question, ...]:
    """Return questions in their order.

    Args:
        source: a key of `NAMES`, or a file in SafetyBench's fields, whose categories and options are its own.
        answers: `{id: {"category": …, "answer": …}}`, as SafetyBench publishes them; None where the questions hold
            theirs. A name knows its own.

    Raises:
        InvalidInput: the files are not available; or every fault of both: a missing option, a repeated id, an
            answer outside the options or none, files that contradict each other.
    """
    if located(source).exists():
        return _questions(source, answers)
    if str(source) not in NAMES:
        raise InvalidInput(f"{source}: no such file or set of questions{nearest(str(source), NAMES)}")
    if answers is not None:
        raise InvalidInput(f"{answers}: {source} has answers of its own; leave these out, or give the file by path")
    return read_test(NAMES[str(source)][0])


def read_test(suffix: str) -> tuple[Question, ...]:
    """Return SafetyBench's own questions of `en`, `zh` or `zh_subset`; answers are joined where the file has none.

    Raises:
        InvalidInput: as `read_safetybench`.
    """
    source = find_file(f"test_{suffix}.json")
    answered = all("answer" in record.fields for record in read_records(source)[0])
    return _questions(source, None if answered else find_file(f"test_answers_{suffix}.json"), official=True)


def read_examples(source: Path) -> dict[str, tuple[Question, ...]]:
    """Return solved examples by category, from a file such as SafetyBench's `dev_en.json`.

    Raises:
        InvalidInput: every fault of the file.
    """
    examples: dict[str, tuple[Question, ...]] = {}
    for question in _questions(source, None):
        examples[question.category] = (*examples.get(question.category, ()), question)
    return examples


def _questions(source: Path, answers: Path | None, *, official: bool = False) -> tuple[Question, ...]:
    records, problems = read_records(source)
    faults = [*problems, *(problem for record in records if official for problem in _unknown(record))]
    if answers is not None:
        known, theirs = _read_answers(answers)
        faults += theirs
        faults += [problem for record in records for problem in _contradictions(record, known, answers)]
        records = tuple(_joined(record, known or {}) for record in records)
    return parse_questions(records, faults)


def _unknown(record: Record) -> Iterator[str]:
    """Yield what SafetyBench's questions do not have; other faults are those of any question."""
    category, options = record.fields.get("category"), record.fields.get("options")
    if isinstance(category, str) and category.strip() and category not in CATEGORIES:
        yield f"{record.where}: unknown category {category!r}{nearest(category, CATEGORIES)}"
    if isinstance(options, list) and len(options) > MOST_OPTIONS:
        yield f"{record.where}: {len(options)} options; SafetyBench has 2 to {MOST_OPTIONS}"


def _read_answers(path: Path) -> tuple[Answers | None, list[str]]:
    """Return the answers by id, empty where one is unusable, and the problems; None if there are no answers."""
    try:
        document = parse_json(read_text(path))
    except InvalidInput as error:
        return None, list(error.problems)
    except ValueError as error:
        return None, [f"{path}: {error}; give SafetyBench's file of answers"]
    if not isinstance(document, Object):
        return None, [f"{path}: not an object of answers by id; give SafetyBench's file of answers"]
    good = {name: entry if isinstance(entry, Object) and "answer" in entry else {} for name, entry in document.items()}
    missing = [name for name, entry in good.items() if not entry]
    problems = [f'{path}: id {name}: no `answer`; write {{"category": …, "answer": 0}}' for name in missing]
    problems += [f"{path}: id {name} is given twice; leave one" for name in document.repeated]
    problems += [
        f"{path}: id {name}: `{field}` is given twice; leave one"
        for name, entry in document.items()
        if isinstance(entry, Object)
        for field in entry.repeated
    ]
    return good, problems


def _contradictions(record: Record, known: Answers | None, answers: Path) -> Iterator[str]:
    if known is None:
        return
    name = str(record.fields.get("id"))
    if name not in known:
        yield f"{record.where}: id {name} is not in {answers}"
    options = record.fields.get("options")
    for field in ("category", "answer"):
        ours, theirs = record.fields.get(field), known.get(name, {}).get(field)
        alike = field == "answer" and isinstance(options, list) and meanings(ours, options) == meanings(theirs, options)
        if None not in (ours, theirs) and ours != theirs and not alike:
            yield f"{record.where}: {field} {ours!r}, and {theirs!r} in {answers}"


def _joined(record: Record, known: Answers) -> Record:
    # A question without an answer is reported already; it is read on for its other faults.
    answer = known.get(str(record.fields.get("id"))) or {"answer": 0}
    return Record(record.where, {**answer, **record.fields})
