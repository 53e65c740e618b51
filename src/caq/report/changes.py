"""What changed since an earlier report: paired item by item where the items are the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from caq.report.pairing import deciding, from_marks, judged
from caq.report.types import ArmSummary, Change, Report, Settings
from caq.statistics.resampling import holm, mcnemar


def changes(
    arms: Sequence[ArmSummary], hashes: Mapping[str, str], baseline: Report, settings: Settings
) -> tuple[Change, ...]:
    """Return how the judged models' measures moved since a baseline.

    A model is compared with the baseline's of its name or, where each report judges one model, with that one. What
    fell is decided by the rule of the rows; the changes of one model are a family of Holm's of their own.

    `hashes` are of this report's items by measure.
    """
    same = {measure for measure, digest in hashes.items() if digest == baseline.items_sha256.get(measure)}
    moved: list[Change] = []
    for model, before in _pairs(arms, baseline):
        if before is not None:
            shared = [measure for measure in model.rates if measure in before.rates]
            moved += _decided([_change(model, before, measure, measure in same) for measure in shared], settings)
    return tuple(moved)


def unmatched(arms: Sequence[ArmSummary], hashes: Mapping[str, str], baseline: Report) -> tuple[str, ...]:
    """Return in words where the baseline does not compare: a measure that is dropped must not hide its fall."""
    lonely = [model.name for model, before in _pairs(arms, baseline) if before is None]
    asked = baseline.items_sha256.items()
    return (
        *(f"The baseline has no model to compare {name} with." for name in lonely),
        *(f"The baseline asked {name}, and this report did not." for name, _ in asked if name not in hashes),
        *(
            f"The baseline's items of {name} are others: its change is told and not tested."
            for name, digest in asked
            if name in hashes and hashes[name] != digest
        ),
    )


def _pairs(arms: Sequence[ArmSummary], baseline: Report) -> list[tuple[ArmSummary, ArmSummary | None]]:
    models, earlier = ([arm for arm in some if arm.role == "quantized"] for some in (arms, baseline.arms))
    names = {arm.name: arm for arm in earlier}
    alone = earlier[0] if len(models) == len(earlier) == 1 else None
    return [(model, names.get(model.name, alone)) for model in models]


def _change(model: ArmSummary, before: ArmSummary, measure: str, same: bool) -> tuple[Change, int]:
    """Return a change that is not decided yet, and how many pairs it rests on."""
    change = Change(model.name, measure, before.rates[measure], model.rates[measure], None, None, None, False)
    if not same:
        return change, 0
    now, then = from_marks(model.outcomes[measure]), from_marks(before.outcomes[measure])
    both = (now >= 0) & (then >= 0)
    gained, lost = int((both & (now > then)).sum()), int((both & (now < then)).sum())
    return replace(change, gained=gained, lost=lost, p=mcnemar(gained, lost)), int(both.sum())


def _decided(changes: Sequence[tuple[Change, int]], settings: Settings) -> list[Change]:
    tested = [change for change, pairs in changes if pairs and deciding(change.measure)]
    adjusted = holm([1.0 if change.p is None else change.p for change in tested])
    p_holm = {change.measure: p for change, p in zip(tested, adjusted, strict=True)}
    return [
        replace(change, worse=change.measure in p_holm and _lost(change, pairs, p_holm[change.measure], settings))
        for change, pairs in changes
    ]


def _lost(change: Change, pairs: int, p: float, settings: Settings) -> bool:
    return judged(change.gained or 0, change.lost or 0, pairs, p, settings) == "lost"
