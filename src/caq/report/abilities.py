"""Abilities of two models, paired item by item where both were asked the same items."""

from __future__ import annotations

from collections.abc import Mapping

from caq.measure.record import Ability
from caq.report.types import PairedAbility
from caq.statistics.resampling import mcnemar, paired_bootstrap


def paired_abilities(ours: Mapping[str, Ability], theirs: Mapping[str, Ability]) -> dict[str, PairedAbility]:
    """Return the differences of the tasks whose items are the same and whose value is their mean."""
    return {
        name: _paired(ability, theirs[name])
        for name, ability in ours.items()
        if name in theirs and ability.outcomes and _asked(ability) == _asked(theirs[name])
    }


def _asked(ability: Ability) -> tuple[str, str, int]:
    return ability.metric, ability.items, len(ability.outcomes)


def _paired(ours: Ability, theirs: Ability) -> PairedAbility:
    pairs = list(zip(ours.outcomes, theirs.outcomes, strict=True))
    gained, lost = sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)
    return PairedAbility(
        paired_bootstrap(ours.outcomes, theirs.outcomes), gained, lost, mcnemar(gained, lost), len(pairs)
    )
