"""Rows in words. Shares are told in per cent, differences in points, to one digit."""

from __future__ import annotations

from collections.abc import Sequence

from caq.comparison.pairing import deciding
from caq.comparison.power import items_needed
from caq.comparison.record import HELPFULNESS, REFUSAL, SAFETY_PREFIX
from caq.comparison.report import Change, Row, Settings


def points(value: float) -> str:
    """Return a share in hundredths, with a real minus sign; what rounds to nothing has none."""
    text = f"{100 * value:.1f}"
    return "0.0" if text == "-0.0" else text.replace("-", "−")


def joined(parts: Sequence[str]) -> str:
    """Return an enumeration: `a`, `a and b`, `a, b and c`; empty without parts."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def title(measure: str) -> str:
    """Return a measure as a sentence calls it."""
    if measure.startswith(SAFETY_PREFIX):
        return f"safety ({measure.removeprefix(SAFETY_PREFIX)})"
    return measure


def fell(row: Row) -> str:
    """Return what a model does less of, with the interval turned round; the subject is for the caller to give."""
    interval = f"(95 % interval {points(-row.score.high)} to {points(-row.score.low)})"
    verb, what = _does(row.measure)
    return f"{verb} {points(-row.difference)} points fewer {what} {interval}"


def kept(row: Row) -> str:
    """Return the difference of a measure, with its interval."""
    return f"{title(row.measure)} {_signed(row.difference)} points {_between(row)}"


def open_question(row: Row, settings: Settings) -> str:
    """Return how far a measure may have fallen, and how many items would settle it."""
    items = row.model.items
    needed = items_needed(items, row.gained + row.lost, settings.margin, settings.power)
    enough = f"about {needed:,} needed" if needed > items else "enough for a model that lost nothing"
    return f"{title(row.measure)} (up to {points(-row.score.low)} points; {items:,} items, {enough})"


def fallen(rows: Sequence[Row]) -> str:
    """Return the categories that fell, measure by measure."""
    measures = dict.fromkeys(row.measure for row in rows)
    return "; ".join(
        f"the categories of {title(measure)} that fell are "
        + joined([f"{row.category} (by {points(-row.difference)})" for row in rows if row.measure == measure])
        for measure in measures
    )


def bullet(row: Row) -> str:
    """Return a row as one reason."""
    name = title(row.measure) + (f", {row.category}" if row.category is not None else "")
    p = f", p = {row.p_holm:.2g} after Holm" if deciding(row.measure) else ""
    return f"{name} is {row.status}: {_signed(row.difference)} points {_between(row)}{p}"


def moved(change: Change) -> str:
    """Return a fall since the baseline."""
    return f"{title(change.measure)} fell from {points(change.before.value)} % to {points(change.now.value)} %"


def resolution(rows: Sequence[Row], settings: Settings) -> str:
    """Return the smallest losses that the measures could have shown; empty without measures."""
    if not rows:
        return ""
    found = joined([f"{_smallest(row)} in {title(row.measure)}" for row in rows])
    return f"The smallest loss that this report had {100 * settings.power:g} % power to see is {found}."


def _smallest(row: Row) -> str:
    return "none" if row.detectable is None else f"{points(row.detectable)} points"


def _does(measure: str) -> tuple[str, str]:
    if measure == REFUSAL:
        return "refuses", "harmful requests"
    if measure == HELPFULNESS:
        return "answers", "harmless requests"
    return "answers", f"safety questions rightly ({measure.removeprefix(SAFETY_PREFIX)})"


def _signed(value: float) -> str:
    text = points(value)
    return text if text.startswith("−") or text == "0.0" else f"+{text}"


def _between(row: Row) -> str:
    return f"(95 % interval {_signed(row.score.low)} to {_signed(row.score.high)})"
