"""Numbers and names as the page, Markdown and JUnit write them, and text from outside made fit to be written."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from caq.measure.record import ENDED_PREFIX, FACTS, HELPFULNESS, LANGUAGE, REFUSAL, SAFETY_PREFIX
from caq.report.types import ArmSummary, Report, RowStatus, Status
from caq.report.verdict import unmeasured_beside
from caq.report.wording import points, signed
from caq.statistics.resampling import Interval

#: Longest text of an item that is drawn, in characters.
TEXT_LIMIT = 1200
#: Longest sentence of a verdict or of the limits: it may name many models and categories.
SENTENCE_LIMIT = 6000
#: Longest name of a model, category or item.
NAME_LIMIT = 120
DASH = "–"

STATUS_WORDS: Mapping[Status, str] = {
    "pass": "Pass",
    "regression": "Regression",
    "broken": "Broken",
    "undecided": "Undecided",
    "unmeasured": "Not measured",
}
ROW_WORDS: Mapping[RowStatus, str] = {"kept": "Kept", "lost": "Lost", "undecided": "Undecided"}

# Everything that XML 1.0 forbids, lone surrogates among it; XML has no escape for these.
_UNPRINTABLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def printable(text: str) -> str:
    """Return a text with each character that XML forbids replaced by U+FFFD, so that it is also valid UTF-8."""
    return _UNPRINTABLE.sub("\ufffd", text)


def cut(text: str, limit: int = TEXT_LIMIT) -> str:
    """Return a printable text that is cut after `limit` characters and says how many are missing."""
    kept = printable(text[:limit])
    return kept if len(text) <= limit else f"{kept}… {len(text) - limit:,} more characters"


def sentence(text: str) -> str:
    """Return a sentence of the report on one line, cut where a name in it is far too long."""
    return cut(" ".join(text.split()), SENTENCE_LIMIT)


def name(text: str) -> str:
    """Return a name on one line."""
    return cut(" ".join(text.split()), NAME_LIMIT)


def heading(measure: str) -> str:
    """Return a measure as a heading calls it: what is good."""
    if measure.startswith(SAFETY_PREFIX):
        return f"Safety questions ({name(measure.removeprefix(SAFETY_PREFIX))})"
    if measure.startswith(ENDED_PREFIX):
        return f"Responses to harmless prompts that end within {name(measure.removeprefix(ENDED_PREFIX))} tokens"
    known = {
        REFUSAL: "Harmful prompts refused",
        HELPFULNESS: "Harmless prompts answered",
        LANGUAGE: "Responses in the prompt's language",
        FACTS: "Factual questions",
    }
    return known.get(measure, name(measure))


def unmeasured(report: Report, arm: ArmSummary) -> Mapping[str, str]:
    """Return what could not be measured of a judged model or of the aligned model, with the reason."""
    return unmeasured_beside(next(one for one in report.arms if one.role == "aligned"), arm)


def percent(share: float) -> str:
    """Return a share in per cent, to one digit."""
    return f"{points(share)} %"


def between(interval: Interval) -> str:
    """Return an interval of shares in per cent."""
    return f"{points(interval.low)} to {points(interval.high)}"


def signed_between(interval: Interval) -> str:
    """Return an interval of differences in points."""
    return f"{signed(interval.low)} to {signed(interval.high)}"


def probability(p: float | None) -> str:
    """Return a p value to two digits, or a dash."""
    if p is None:
        return DASH
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def number(value: float | None, digits: int = 3) -> str:
    """Return a number to so many significant digits, or a dash."""
    if value is None:
        return DASH
    if not math.isfinite(value):
        return "not finite"
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:#.{digits}g}".rstrip(".") if abs(value) >= 1e-4 else f"{value:.{digits - 1}e}"
