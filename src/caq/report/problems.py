"""What makes a comparison impossible to judge; every problem is reported at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from caq.measure.record import ArmRecord, Comparison
from caq.report.types import Settings


def problems_of(comparison: Comparison, settings: Settings) -> list[str]:
    """Return every problem of a comparison and of the settings, one sentence each."""
    return [
        *_roles(comparison),
        *(problem for arm in comparison.arms for problem in _outcomes(arm, comparison)),
        *settings_problems(settings),
    ]


def _roles(comparison: Comparison) -> Iterator[str]:
    roles = Counter(arm.role for arm in comparison.arms)
    if roles["aligned"] > 1:
        yield f"{roles['aligned']} aligned models; a comparison has one, the `--reference`"
    if roles["base"] > 1:
        yield f"{roles['base']} base models; a comparison takes one at most"
    if roles["aligned"] and not roles["quantized"]:
        yield "no model to judge; name at least one beside the `--reference`"
    names = Counter(arm.name for arm in comparison.arms)
    yield from (f"{count} arms are called {name!r}; names are unique" for name, count in names.items() if count > 1)


def _outcomes(arm: ArmRecord, comparison: Comparison) -> Iterator[str]:
    for measure, outcomes in arm.outcomes.items():
        items = comparison.items.get(measure)
        if items is None:
            yield f"{arm.name} has outcomes of {measure}, which has no items; give its items"
        elif len(items) != len(outcomes):
            yield f"{arm.name} has {len(outcomes)} outcomes of {measure}, of {len(items)} items; measure it again"


def settings_problems(settings: Settings) -> Iterator[str]:
    """Yield every problem of the settings."""
    for name in ("margin", "alpha", "power"):
        if not 0 < getattr(settings, name) < 1:
            yield f"{name} is {getattr(settings, name)} and must lie between 0 and 1"
    if settings.power <= settings.alpha:
        yield f"power {settings.power} must be above alpha {settings.alpha}"
    if settings.resamples < 1:
        yield f"resamples is {settings.resamples} and must be at least 1"
