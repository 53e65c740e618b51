"""What changed since an earlier report: paired item by item where the items are the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from caq.comparison.pairing import deciding, from_marks, judged
from caq.comparison.report import ArmSummary, Change, Report, Settings
from caq.evaluate.statistics import holm, mcnemar


def changes(
    arms: Sequence[ArmSummary], hashes: Mapping[str, str], baseline: Report, settings: Settings
) -> tuple[Change, ...]:
    """Return how the judged models' measures moved since a baseline.

    A model is compared with the baseline's of its name or, where each report judges one model, with that one.
    """
    models, earlier = _judged(arms), _judged(baseline.arms)
    names = {arm.name: arm for arm in earlier}
    alone = earlier[0] if len(models) == len(earlier) == 1 else None
    pairs = [(model, names.get(model.name, alone)) for model in models]
    return tuple(
        change
        for model, before in pairs
        if before is not None
        for change in _decided(
            [_change(model, before, name, hashes, baseline) for name in _shared(model, before)], settings
        )
    )


def _judged(arms: Sequence[ArmSummary]) -> list[ArmSummary]:
    return [arm for arm in arms if arm.role == "quantized"]


def _shared(model: ArmSummary, before: ArmSummary) -> list[str]:
    return [name for name in model.rates if name in before.rates]


def _change(
    model: ArmSummary, before: ArmSummary, measure: str, hashes: Mapping[str, str], baseline: Report
) -> tuple[Change, int]:
    """Return a change that is not decided yet, and its number of pairs."""
    unpaired = Change(model.name, measure, before.rates[measure], model.rates[measure], None, None, None, False)
    if hashes[measure] != baseline.items_sha256.get(measure):
        return unpaired, 0
    now, then = from_marks(model.outcomes[measure]), from_marks(before.outcomes[measure])
    both = (now >= 0) & (then >= 0)
    gained, lost = int((both & (now > then)).sum()), int((both & (now < then)).sum())
    return replace(unpaired, gained=gained, lost=lost, p=mcnemar(gained, lost)), int(both.sum())


def _decided(found: list[tuple[Change, int]], settings: Settings) -> list[Change]:
    """Mark what lost, by the rule of the rows; the changes of one model are a family of Holm's of their own."""
    family = [(change, pairs) for change, pairs in found if deciding(change.measure) and pairs]
    adjusted = holm([change.p or 0.0 for change, _ in family])
    worse = {
        change.measure
        for (change, pairs), p in zip(family, adjusted, strict=True)
        if judged(change.gained or 0, change.lost or 0, pairs, p, settings) == "lost"
    }
    return [replace(change, worse=change.measure in worse) for change, _ in found]
