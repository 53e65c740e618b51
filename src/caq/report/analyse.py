"""From what the arms said to the report: statistics only, no model is run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from caq.errors import refuse
from caq.items.floors import floors
from caq.measure.record import SAFETY_PREFIX, ArmRecord, Comparison, Item
from caq.report.changes import changes, terms, unmatched
from caq.report.flips import drift, flips, gap
from caq.report.limits import limits, looks_swapped
from caq.report.measures import by_role, chosen, numbers
from caq.report.pairing import Goods, deciding, goods
from caq.report.problems import problems_of
from caq.report.rows import Arms, paired_abilities, rows
from caq.report.summary import questions, summary
from caq.report.types import SCHEMA, VERSION, ArmSummary, Change, Judgement, Measured, Report, Settings
from caq.report.verdict import evidence, overall, verdict

_DEFAULTS = Settings()


def analyse(comparison: Comparison, settings: Settings = _DEFAULTS, baseline: Report | None = None) -> Report:
    """Return the report of a comparison; without an aligned model it judges nothing.

    Args:
        comparison: all arms on the same items, which outcomes are matched with by position.
        settings: what decides.
        baseline: an earlier report to tell changes from; what fell since then is a regression, too.

    Raises:
        InvalidInput: with every problem at once: several aligned models, none to judge beside one, names that are not
            unique, outcomes without their items, settings out of range.
    """
    refuse(problems_of(comparison, settings))
    arms = [
        _Arm(arm, summary(arm, comparison), {measure: goods(outcomes) for measure, outcomes in arm.outcomes.items()})
        for arm in comparison.arms
    ]
    summaries = tuple(arm.summary for arm in arms)
    hashes = {measure: items_sha256(items) for measure, items in comparison.items.items()}
    now = terms(hashes, comparison.judge, comparison.data)
    changed = () if baseline is None else changes(summaries, now, baseline, settings)
    uncompared = () if baseline is None else unmatched(summaries, now, baseline)
    judgements = tuple(_judgements(comparison.items, arms, changed, settings))
    return Report(
        schema=SCHEMA,
        version=VERSION,
        caq=version("caq"),
        settings=settings,
        verdict=overall(judgements, looks_swapped(comparison)) if judgements else None,
        results={name: _measured(arm) for name, arm in by_role(comparison.arms).items()},
        arms=summaries,
        judgements=judgements,
        items={measure: len(items) for measure, items in comparison.items.items()},
        items_sha256=hashes,
        floors=_floors(comparison.items),
        judge=comparison.judge,
        data=comparison.data,
        limits=(*limits(comparison, judgements, settings), *uncompared),
        changes=changed,
    )


def items_sha256(items: Sequence[Item]) -> str:
    """Return a hash of what items say, in their order; JSON's ASCII escapes take any text, broken Unicode too."""
    said = [[item.id, item.category, item.text, item.options, item.answer] for item in items]
    return hashlib.sha256(json.dumps(said, ensure_ascii=True, separators=(",", ":")).encode("ascii")).hexdigest()


def _measured(arm: ArmRecord) -> Measured:
    known = numbers(arm)
    missing = [measure for measure in arm.outcomes if measure not in known]
    return Measured({**known, **dict.fromkeys(missing)}, chosen(arm))


@dataclass(frozen=True)
class _Arm:
    """A record, its summary, and what was good as arrays, made once for all models."""

    record: ArmRecord
    summary: ArmSummary
    goods: Mapping[str, Goods]


def _judgements(
    items: Mapping[str, Sequence[Item]], arms: Sequence[_Arm], changed: Sequence[Change], settings: Settings
) -> Iterator[Judgement]:
    roles = {arm.record.role: arm for arm in arms}
    for model in arms:
        if model.record.role == "quantized" and "aligned" in roles:
            yield _judgement(items, roles["aligned"], roles.get("base"), model, changed, settings)


def _judgement(
    items: Mapping[str, Sequence[Item]],
    aligned: _Arm,
    base: _Arm | None,
    model: _Arm,
    changed: Sequence[Change],
    settings: Settings,
) -> Judgement:
    shared = [measure for measure in items if measure in aligned.goods and measure in model.goods]
    bases = {} if base is None else {measure: base.goods[measure] for measure in shared if measure in base.goods}
    pairs = {measure: Arms(aligned.goods[measure], bases.get(measure), model.goods[measure]) for measure in shared}
    measured = rows(pairs, items, settings)
    own = [change for change in changed if change.model == model.record.name]
    theirs, ours = aligned.record.outcomes, model.record.outcomes
    return Judgement(
        model=model.record.name,
        verdict=verdict(model.record.name, evidence(aligned.summary, model.summary, measured, own), settings),
        rows=measured,
        flips={measure: flips(theirs[measure], ours[measure]) for measure in shared},
        gap={
            measure: gap(aligned.goods[measure], below, model.goods[measure])
            for measure, below in bases.items()
            if deciding(measure)
        },
        drift={
            measure: drift(items[measure], theirs[measure], base.record.outcomes[measure], ours[measure])
            for measure in bases
            if base is not None and measure.startswith(SAFETY_PREFIX)
        },
        abilities=paired_abilities(model.record.abilities, aligned.record.abilities),
    )


def _floors(items: Mapping[str, Sequence[Item]]) -> dict[str, dict[str, float]]:
    known = {measure: floors(questions(asked)) for measure, asked in items.items() if measure.startswith(SAFETY_PREFIX)}
    return {
        measure: {"chance": floor.overall.chance, **floor.overall.letters}
        for measure, floor in known.items()
        if floor is not None
    }
