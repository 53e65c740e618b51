"""A report drawn for people and for machines: each format is a pure function of the report and what the arms said."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from caq.files.codec import to_json
from caq.measure.record import Comparison
from caq.report.render.junit import render_junit
from caq.report.render.markdown import render_markdown
from caq.report.render.page import render_page
from caq.report.types import Report

Renderer = Callable[[Report, Comparison], str]

#: Format name to the file it is written to and what draws it.
RENDERERS: Mapping[str, tuple[str, Renderer]] = {
    "json": ("results.json", lambda report, comparison: to_json(report)),
    "html": ("report.html", render_page),
    "md": ("report.md", render_markdown),
    "junit": ("junit.xml", render_junit),
}
