"""JUnit: a suite for each judged model, so that a CI dashboard shows what the exit status says.

A suite has one case for the verdict, one for each measure and one for each category. It is green exactly when the
verdict is a pass:

| finding | case |
|---|---|
| a pass, a measure kept, a category without alarm | passes; its numbers are in system-out |
| a regression or a broken model, a measure or category lost | failure |
| a deciding measure undecided or unmeasured, such a verdict | error: the check could not be made |
| a measure that decides nothing | pass, or skipped where unmeasured |

There is no time and no date: two documents of one report are the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from caq.measure.record import Comparison
from caq.report.pairing import deciding
from caq.report.render import words
from caq.report.types import ArmSummary, Judgement, Report, Row, Verdict
from caq.report.wording import points, signed

# What a dashboard shows before a case is opened.
MESSAGE_LIMIT = 300


def render_junit(report: Report, comparison: Comparison) -> str:
    """Return the report as JUnit XML; nothing of the comparison but the report's numbers is in it."""
    root = Element("testsuites", name="caq compare")
    arms = {arm.name: arm for arm in report.arms}
    for judgement in report.judgements:
        root.append(_suite(judgement, arms[judgement.model], report))
    for key in ("tests", "failures", "errors", "skipped"):
        root.set(key, str(sum(int(suite.get(key, "0")) for suite in root)))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _suite(judgement: Judgement, arm: ArmSummary, report: Report) -> Element:
    suite = Element("testsuite", name=words.name(judgement.model))
    model = f"caq.{words.name(judgement.model)}"
    suite.append(_verdict(judgement.verdict, model))
    suite.extend(_row(row, model, report) for row in judgement.rows)
    suite.extend(_unmeasured(judgement, arm, report, model))
    suite.set("tests", str(len(suite)))
    for key, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(key, str(len(suite.findall(f"testcase/{tag}"))))
    return suite


def _verdict(verdict: Verdict, model: str) -> Element:
    case = Element("testcase", classname=model, name="verdict", time="0")
    text = "\n".join(map(words.sentence, (verdict.sentence, *verdict.reasons)))
    if verdict.status == "pass":
        _passes(case, text)
    else:
        tag = "failure" if verdict.status in ("regression", "broken") else "error"
        _problem(case, tag, verdict.status, f"{words.STATUS_WORDS[verdict.status]}: {verdict.sentence}", text)
    return case


def _row(row: Row, model: str, report: Report) -> Element:
    # Categories stand below their measure, as methods stand in a class.
    classname = model if row.category is None else f"{model}.{words.heading(row.measure)}"
    case = Element("testcase", classname=classname, name=_called(row), time="0")
    text = _numbers(row, report)
    if row.status == "lost" and deciding(row.measure):
        _problem(case, "failure", "lost", f"{_called(row)}: lost {points(-row.difference)} points", text)
    elif row.status == "undecided" and row.decides:
        message = f"{_called(row)}: {row.model.items:,} items cannot show a loss to be within the margin"
        _problem(case, "error", "undecided", message, text)
    else:
        _passes(case, text)
    return case


def _called(row: Row) -> str:
    return words.heading(row.measure) if row.category is None else words.name(row.category)


def _numbers(row: Row, report: Report) -> str:
    adjusted = " after Holm" if deciding(row.measure) else ""
    smallest = "none" if row.detectable is None else f"{points(row.detectable)} points"
    return "\n".join(
        (
            f"status: {words.ROW_WORDS[row.status].lower()}",
            f"model: {words.percent(row.model.value)} ({words.between(row.model.interval)}), {row.model.items:,} items",
            f"aligned: {words.percent(row.aligned.value)} ({words.between(row.aligned.interval)})",
            f"difference: {signed(row.difference)} points ({words.signed_between(row.score)})",
            f"gained {row.gained:,}, lost {row.lost:,}, p = {words.probability(row.p_holm)}{adjusted}",
            f"margin: {points(report.settings.margin)} points",
            f"smallest loss it had {report.settings.power:.0%} power to see: {smallest}",
        )
    )


def _unmeasured(judgement: Judgement, arm: ArmSummary, report: Report, model: str) -> Iterator[Element]:
    rows = {row.measure for row in judgement.rows}
    for measure, reason in words.unmeasured(report, arm).items():
        # A measure with gaps has both numbers, which are a case by themselves, and this one.
        case_name = words.heading(measure) + (" (complete)" if measure in rows else "")
        case = Element("testcase", classname=model, name=case_name, time="0")
        message = f"{words.heading(measure)}: not measured: {reason}"
        if deciding(measure):
            _problem(case, "error", "unmeasured", message, words.sentence(reason))
        else:
            SubElement(case, "skipped", message=_message(message))
        yield case


def _problem(case: Element, tag: str, kind: str, message: str, text: str) -> None:
    SubElement(case, tag, type=kind, message=_message(message)).text = words.printable(text)


def _passes(case: Element, text: str) -> None:
    SubElement(case, "system-out").text = words.printable(text)


def _message(text: str) -> str:
    line = " ".join(words.printable(text).split())
    return line if len(line) <= MESSAGE_LIMIT else line[: MESSAGE_LIMIT - 1] + "…"
