"""The report as one HTML page that asks the network for nothing: data, style, script and charts are inside it.

The page's policy forbids every request. Its one script and its one style sheet are allowed by their hashes; style
attributes are allowed at large, for the charts, and cannot load anything under the same policy. Text from outside
reaches the page escaped by jinja2 or, in the item view, as JSON that the script puts in as text and never as HTML.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from caq.measure.record import Comparison, Distances
from caq.report.render import charts, words
from caq.report.render.items import KIND_WORDS, flipped_items
from caq.report.types import ArmSummary, Judgement, Report, Row

#: Of the categories of a measure, so many are drawn, those that fell most; of an arm's ledger, so many entries.
CHART_ROWS = 40
LEDGER_ENTRIES = 200


def render_page(report: Report, comparison: Comparison) -> str:
    """Return the page; the same report and comparison give the same text, which is valid UTF-8 under 5 MB."""
    style, script = _file("page.css"), _file("page.js")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    names = "percent points signed between signed_between probability number heading name cut sentence".split()
    environment.filters |= {"count": "{:,}".format, **{name: getattr(words, name) for name in names}}
    page = environment.from_string(_file("page.html.j2")).render(
        report=report,
        aligned=next(arm for arm in report.arms if arm.role == "aligned"),
        has_base=any(arm.role == "base" for arm in report.arms),
        measures=list(report.items),
        models=[_model(judgement, report) for judgement in report.judgements],
        distances=[view for arm in report.arms if (view := _distances(arm))],
        letters={measure: drawn for measure in report.items if (drawn := _letters(measure, report))},
        flipped=flipped_items(report, comparison),
        kinds=KIND_WORDS,
        status_words=words.STATUS_WORDS,
        row_words=words.ROW_WORDS,
        ledger_entries=LEDGER_ENTRIES,
        policy=_policy(style, script),
        style=Markup(style),
        script=Markup(script),
    )
    return words.printable(page)


def _policy(style: str, script: str) -> str:
    return (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src-elem '{_hash(style)}'; "
        "style-src-attr 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _file(file_name: str) -> str:
    return resources.files("caq.report.render").joinpath(file_name).read_text(encoding="utf-8")


@dataclass(frozen=True)
class _Model:
    """One judged model's section.

    Attributes:
        unmeasured: with the reasons.
        groups: each measure's row with those of its categories.
        differences: chart of the measures; None without rows.
        categories: chart by measure, with how many categories it leaves out.
    """

    judgement: Judgement
    unmeasured: Mapping[str, str]
    groups: Sequence[tuple[Row, Sequence[Row]]]
    differences: Markup | None
    categories: Mapping[str, tuple[Markup, int]]


def _model(judgement: Judgement, report: Report) -> _Model:
    measures = [row for row in judgement.rows if row.category is None]
    groups = [
        (row, [one for one in judgement.rows if one.measure == row.measure and one.category is not None])
        for row in measures
    ]
    drawn = {}
    for row, categories in groups:
        if categories:
            fallen = sorted(categories, key=lambda one: one.difference)[:CHART_ROWS]
            shown = [one for one in categories if one in fallen]
            drawn[row.measure] = (charts.category_bars(judgement.model, shown), len(categories) - len(shown))
    return _Model(
        judgement,
        words.unmeasured(report, next(arm for arm in report.arms if arm.name == judgement.model)),
        groups,
        charts.differences(judgement.model, measures, report.settings.margin) if measures else None,
        drawn,
    )


@dataclass(frozen=True)
class _Distances:
    """One arm's distances: columns of the table, and charts by what the models read."""

    arm: ArmSummary
    columns: Sequence[tuple[str, Distances]]
    charts: Mapping[str, Markup]


def _distances(arm: ArmSummary) -> _Distances | None:
    named = {
        "from aligned, text": arm.kl_text,
        "from aligned, chat": arm.kl_chat,
        "from base, text": arm.kl_base_text,
        "from base, chat": arm.kl_base_chat,
    }
    columns = [(label, distances) for label, distances in named.items() if distances is not None]
    if not columns or arm.role == "aligned":
        return None
    text, chat = (arm.kl_text, arm.kl_base_text), (arm.kl_chat, arm.kl_base_chat)
    drawn = {
        label: charts.kl_histogram(f"{words.name(arm.name)}, {label.lower()}", aligned, base)
        for label, (aligned, base) in (("Plain text", text), ("First tokens of responses", chat))
        if aligned is not None and arm.role == "quantized"
    }
    return _Distances(arm, columns, drawn)


def _letters(measure: str, report: Report) -> list[tuple[ArmSummary, Markup]]:
    items, chosen = report.items[measure], [arm for arm in report.arms if measure in arm.letters]
    labels = [f"{words.name(arm.name)}, {words.heading(measure)}" for arm in chosen]
    drawn = zip(chosen, labels, strict=True) if items else ()
    return [(arm, charts.letter_bars(label, arm.letters[measure], items)) for arm, label in drawn]
