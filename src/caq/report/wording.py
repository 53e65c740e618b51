"""Rows in words. Shares are in per cent, differences in points, to one digit."""

from __future__ import annotations

from collections.abc import Sequence

from caq.measure.record import ENDED_PREFIX, HELPFULNESS, REFUSAL, SAFETY_PREFIX
from caq.report.pairing import deciding
from caq.report.types import Change, Row, Settings
from caq.statistics.power import items_needed


def points(value: float) -> str:
    """Return a share in hundredths, with a real minus sign; what rounds to nothing has none."""
    text = f"{100 * value:.1f}"
    return "0.0" if text == "-0.0" else text.replace("-", "−")


def signed(difference: float) -> str:
    """Return a difference in points with its sign."""
    text = points(difference)
    return text if text.startswith("−") or text == "0.0" else f"+{text}"


def joined(parts: Sequence[str]) -> str:
    """Return an enumeration: `a`, `a and b`, `a, b and c`; empty without parts."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def title(measure: str) -> str:
    """Return a measure as a sentence calls it."""
    if measure.startswith(SAFETY_PREFIX):
        return f"safety ({measure.removeprefix(SAFETY_PREFIX)})"
    if measure.startswith(ENDED_PREFIX):
        return f"ended within {measure.removeprefix(ENDED_PREFIX)} tokens"
    return measure


def fell(row: Row) -> str:
    """Return what a model does less of; the subject is for the caller to give."""
    verb, what = _does(row.measure)
    return f"{verb} {points(-row.difference)} points fewer {what}"


def fell_between(row: Row) -> str:
    """Return the same with its interval, turned round."""
    return f"{fell(row)} (95 % interval {points(-row.score.high)} to {points(-row.score.low)})"


def kept(row: Row) -> str:
    """Return the difference of a measure, with its interval."""
    return f"{title(row.measure)} {signed(row.difference)} points {_between(row)}"


def open_question(row: Row, settings: Settings) -> str:
    """Return how far a measure may have fallen, and how many items would settle it."""
    items = row.model.items
    needed = items_needed(items, row.gained + row.lost, settings.margin, settings.power)
    enough = f"about {needed:,} needed" if needed > items else "enough for a model that lost nothing"
    return f"{title(row.measure)} (up to {points(-row.score.low)} points; {items:,} items, {enough})"


def fallen(rows: Sequence[Row]) -> str:
    """Return the categories that fell, each once and by its largest loss, the largest first; empty without any."""
    losses: dict[str, float] = {}
    for row in rows:
        if row.category is not None:
            losses[row.category] = max(losses.get(row.category, 0.0), -row.difference)
    ordered = sorted(losses.items(), key=lambda loss: -loss[1])
    named = joined([f"{category} (by {points(loss)})" for category, loss in ordered])
    return f"the categories that fell are {named}" if named else ""


def bullet(row: Row) -> str:
    """Return a row as one reason."""
    name = title(row.measure) + (f", {row.category}" if row.category is not None else "")
    p = f", p = {row.p_holm:.2g} after Holm" if deciding(row.measure) else ""
    return f"{name} is {row.status}: {signed(row.difference)} points {_between(row)}{p}"


def moved(change: Change) -> str:
    """Return a fall since the baseline."""
    return f"{title(change.measure)} fell from {points(change.before.value)} % to {points(change.now.value)} %"


def resolution(rows: Sequence[Row], settings: Settings) -> str:
    """Return between what bounds the smallest losses lie that the measures could have shown; empty without measures."""
    if not rows:
        return ""
    power = f"{100 * settings.power:g} % power"
    losses = sorted(row.detectable for row in rows if row.detectable is not None)
    if not losses:
        return f"These items have no {power} to see any loss."
    ends = dict.fromkeys((points(losses[0]), points(losses[-1])))
    blind = [title(row.measure) for row in rows if row.detectable is None]
    return f"The smallest loss that its measures had {power} to see is {' to '.join(ends)} points" + (
        f", and none in {joined(blind)}." if blind else "."
    )


def _does(measure: str) -> tuple[str, str]:
    if measure == REFUSAL:
        return "refuses", "harmful requests"
    if measure == HELPFULNESS:
        return "answers", "harmless requests"
    return "answers", f"safety questions rightly ({measure.removeprefix(SAFETY_PREFIX)})"


def _between(row: Row) -> str:
    return f"(95 % interval {signed(row.score.low)} to {signed(row.score.high)})"
