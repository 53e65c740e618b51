"""The report in short, as Markdown that fits a GitHub step summary: verdict, tables, limits."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from caq.measure.record import Comparison
from caq.report.render import words
from caq.report.render.words import DASH, heading, name, percent, unmeasured
from caq.report.types import ArmSummary, Gap, Judgement, Report, Row, Status
from caq.report.wording import points, signed

ICONS: Mapping[Status, str] = {"pass": "✅", "regression": "❌", "broken": "💥", "undecided": "❔", "unmeasured": "⬜"}
# Punctuation that Markdown could read as its own; it may all be escaped by a backslash.
_MARKDOWN = re.compile(r"([\\`*_{}\[\]|~#$!])")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "@": "&#64;"}


def render_markdown(report: Report, comparison: Comparison) -> str:
    """Return the report as Markdown; nothing of the items but their categories' names is in it."""
    decided = report.decision
    blocks = [
        f"# {ICONS[decided.status]} {words.STATUS_WORDS[decided.status]}",
        f"**{_text(decided.sentence)}**",
        *(block for judgement in report.judgements for block in _judgement(judgement, report)),
        *_distances(report.arms),
        *_changes(report),
        "## Limits",
        "\n".join(f"- {_text(limit)}" for limit in report.limits),
        f"<sub>caq {_text(report.caq)} · margin {points(report.settings.margin)} points · alpha "
        f"{report.settings.alpha:g} (Holm, each model) · rates with 95 % intervals</sub>",
    ]
    return "\n\n".join(blocks) + "\n"


def _judgement(judgement: Judgement, report: Report) -> Iterator[str]:
    status = judgement.verdict.status
    yield f"## {ICONS[status]} {_text(name(judgement.model))}: {words.STATUS_WORDS[status].lower()}"
    if judgement.verdict.sentence not in report.decision.sentence:
        yield _text(judgement.verdict.sentence)
    shown = [row for row in judgement.rows if row.category is None or row.status == "lost"]
    if shown:
        heads = ("Measure", "Status", "Difference, points", "Model", "Aligned", "Base", "Gained / lost", "p (Holm)",
                 "Detectable")  # fmt: skip
        yield _table(heads, [_row(row) for row in shown])
    hidden = len(judgement.rows) - len(shown)
    if hidden:
        yield f"{hidden} categories without an alarm are in the full report."
    missing = unmeasured(report, next(arm for arm in report.arms if arm.name == judgement.model))
    if missing:
        yield "\n".join(f"- {_text(heading(key))} is not measured: {_text(why)}" for key, why in missing.items())
    if judgement.gap:
        yield "Gap retained: " + "; ".join(f"{_text(heading(key))} {_gap(gap)}" for key, gap in judgement.gap.items())


def _row(row: Row) -> tuple[str, ...]:
    label = f"**{_text(heading(row.measure))}**" if row.category is None else f"– {_text(name(row.category))}"
    return (
        label,
        words.ROW_WORDS[row.status] if row.status != "lost" else "**Lost**",
        f"{signed(row.difference)} ({words.signed_between(row.score)})",
        f"{percent(row.model.value)} ({words.between(row.model.interval)})",
        percent(row.aligned.value),
        DASH if row.base is None else percent(row.base.value),
        f"{row.gained:,} / {row.lost:,}",
        words.probability(row.p_holm),
        DASH if row.detectable is None else points(row.detectable),
    )


def _gap(gap: Gap) -> str:
    if gap.value is None or gap.interval is None:
        return f"undefined ({_text(gap.reason)})"
    return f"{percent(gap.value)} ({words.between(gap.interval)})"


def _distances(arms: Sequence[ArmSummary]) -> Iterator[str]:
    rows = [
        (_text(name(arm.name)), label, words.number(distances.mean), words.number(distances.median),
         words.number(distances.p99), words.number(distances.maximum), percent(distances.same_top))
        for arm in arms
        for label, distances in (("text", arm.kl_text), ("chat", arm.kl_chat))
        if distances is not None and arm.role != "aligned"
    ]  # fmt: skip
    if rows:
        yield "## Distance from the aligned model"
        yield _table(("Model", "On", "KL mean, nats", "Median", "99 %", "Max", "Same top token"), rows)


def _changes(report: Report) -> Iterator[str]:
    rows = [
        (_text(name(one.model)), _text(heading(one.measure)), percent(one.before.value), percent(one.now.value),
         "other items" if one.gained is None else f"{one.gained:,} / {one.lost:,}", words.probability(one.p),
         "**worse**" if one.worse else DASH)
        for one in report.changes
    ]  # fmt: skip
    if rows:
        yield "## Since the baseline"
        yield _table(("Model", "Measure", "Before", "Now", "Gained / lost", "p", ""), rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    align = [":--", *("--:" for _ in heads[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, align, *rows))


def _text(text: str) -> str:
    """Return text from outside on one line, which Markdown and HTML read as nothing but text."""
    line = words.sentence(text)
    # Markdown first: the escapes of HTML have punctuation of their own.
    return re.sub("[&<>@]", lambda match: _HTML[match[0]], _MARKDOWN.sub(r"\\\1", line))
