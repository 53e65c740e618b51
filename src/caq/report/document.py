"""The report as a document: results.json of `caq evaluate`, `caq compare` and `caq reproduce`."""

from __future__ import annotations

import json
from pathlib import Path

from caq.errors import InvalidInput, refuse
from caq.files.codec import decode, encode, parse
from caq.report.types import SCHEMA, VERSION, Report

RESULTS_FILE = "results.json"


def to_json(report: Report) -> str:
    """Return the report as JSON in ASCII; equal reports give equal texts."""
    return json.dumps(encode(report), indent=1, allow_nan=False) + "\n"


def from_json(text: str) -> Report:
    """Return the report that `to_json` wrote.

    Raises:
        InvalidInput: the text is not JSON, of another schema or version, has fields that are missing, mistyped or
            unknown, or outcomes that do not fit its items; with every problem at once.
    """
    try:
        data = parse(text)
    except ValueError as error:
        raise InvalidInput(f"the report is not JSON ({error}); give a results.json that CAQ wrote") from error
    schema, version = (data.get("schema"), data.get("version")) if isinstance(data, dict) else (None, None)
    if (schema, version) != (SCHEMA, VERSION):
        raise InvalidInput(
            f"the report has schema {schema!r}, version {version!r}, and this version of CAQ reads {SCHEMA!r}, "
            f"version {VERSION}; make it again with this version"
        )
    report = decode(Report, data, "report")
    refuse(_contradictions(report))
    return report


def read_report(path: str | Path) -> Report:
    """Return the report of a file.

    Raises:
        InvalidInput: it cannot be read, or as `from_json`.
    """
    try:
        return from_json(Path(path).read_bytes().decode())
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: {error}; give a results.json that CAQ wrote") from error
    except InvalidInput as error:
        raise InvalidInput([f"{path}: {problem}" for problem in error.problems]) from error


def _contradictions(report: Report) -> list[str]:
    return [
        f"{arm.name}'s outcomes of {measure} are not {report.items.get(measure, 0)} marks of `1`, `0` and `-`"
        for arm in report.arms
        for measure, marks in arm.outcomes.items()
        if len(marks) != report.items.get(measure) or set(marks) - set("10-")
    ]
