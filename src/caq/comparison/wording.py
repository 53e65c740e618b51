"""Rows in words. Shares are told in per cent, differences in points, to one digit."""

from __future__ import annotations

from collections.abc import Sequence

from caq.comparison.pairing import deciding
from caq.comparison.power import items_needed
from caq.comparison.record import HELPFULNESS, REFUSAL, SAFETY_PREFIX
from caq.comparison.report import Row, Settings


def points(value: float) -> str:
    """Return a share in hundredths, with a real minus sign; what rounds to nothing has none."""
    text = f"{100 * value:.1f}"
    return "0.0" if text == "-0.0" else text.replace("-", "−")


def joined(parts: Sequence[str]) -> str:
    """Return an enumeration: `a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def title(measure: str) -> str:
    """Return a measure as a sentence calls it."""
    if measure.startswith(SAFETY_PREFIX):
        return f"safety ({measure.removeprefix(SAFETY_PREFIX)})"
    return measure


def fell(row: Row) -> str:
    """Return the loss of a measure, with its interval turned round."""
    interval = f"(95 % interval {points(-row.score.high)} to {points(-row.score.low)})"
    return f"it {_does(row.measure)[0]} {points(-row.difference)} points fewer {_does(row.measure)[1]} {interval}"


def kept(row: Row) -> str:
    """Return the difference of a measure, with its interval."""
    return f"{title(row.measure)} {_signed(row.difference)} points {_between(row)}"


def open_question(row: Row, settings: Settings) -> str:
    """Return what a measure leaves open, and how many items would settle it."""
    items = row.model.items
    needed = items_needed(items, row.gained + row.lost, settings.margin, settings.power)
    text = f"{title(row.measure)} may have fallen by up to {points(-row.score.low)} points, on {items:,} items"
    if needed <= items:
        return f"{text}, and more than those would tell whether it did"
    return f"{text}; about {needed:,} would show a model that lost nothing to be within {points(settings.margin)}"


def bullet(row: Row) -> str:
    """Return a row as one reason."""
    name = title(row.measure) + (f", {row.category}" if row.category is not None else "")
    p = f", p = {row.p_holm:.2g} after Holm" if deciding(row.measure) else ""
    return f"{name} is {row.status}: {_signed(row.difference)} points {_between(row)}{p}"


def resolution(rows: Sequence[Row], settings: Settings) -> str:
    """Return the smallest losses that the measures could have shown; empty without measures."""
    if not rows:
        return ""
    found = joined([f"{_smallest(row)} in {title(row.measure)}" for row in rows])
    return f"The smallest loss that this report had {settings.power:.0%} power to see is {found}."


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
