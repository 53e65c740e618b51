"""A report drawn for people and for machines: each format is a pure function of the report and what the arms said."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from caq.files.whole import write_text
from caq.measure.record import Comparison
from caq.report.document import RESULTS_FILE, to_json
from caq.report.render.junit import render_junit
from caq.report.render.markdown import render_markdown
from caq.report.render.page import render_page
from caq.report.types import Report

Renderer = Callable[[Report, Comparison], str]

#: Format name to the file it is written to and what draws it.
RENDERERS: dict[str, tuple[str, Renderer]] = {
    "json": (RESULTS_FILE, lambda report, comparison: to_json(report)),
    "html": ("report.html", render_page),
    "md": ("report.md", render_markdown),
    "junit": ("junit.xml", render_junit),
}


def report_files() -> tuple[str, ...]:
    """Return the names of the files of all formats."""
    return tuple(file for file, _ in RENDERERS.values())


def write_report(output: Path, report: Report, comparison: Comparison, formats: Sequence[str]) -> None:
    """Draw a report; a format that is not asked for does not stay behind with an older verdict."""
    drawn: Mapping[str, str] = {
        name: render(report, comparison) for key, (name, render) in RENDERERS.items() if key in formats
    }
    for name in report_files():
        if name in drawn:
            write_text(output / name, drawn[name])
        else:
            (output / name).unlink(missing_ok=True)
