"""What changed since an earlier report: paired item by item where the items are the same."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from caq.measure.record import HELPFULNESS, LANGUAGE, REFUSAL, SAFETY_PREFIX, JudgeCard
from caq.report.pairing import deciding, from_marks, judged
from caq.report.types import ArmSummary, Change, Report, Settings
from caq.statistics.resampling import holm, mcnemar

#: By measure, a hash of its items and, in words, how it was asked and judged.
Terms = Mapping[str, tuple[str, frozenset[str]]]


def terms(hashes: Mapping[str, str], judge: JudgeCard | None, data: Mapping[str, str]) -> Terms:
    """Return what decides outcomes besides the model, as far as a document says it."""
    protocols = {measure.removeprefix(SAFETY_PREFIX) for measure in hashes}
    asked = frozenset(data.get("safety", "").rpartition(" questions, ")[2].split(", ")) - protocols
    lengths = re.findall(r"up to \d+ tokens", data.get("prompts", ""))[-1:]
    judged = frozenset([*lengths, *([] if judge is None else [f"judged by {judge.name}"])])
    put = {REFUSAL: judged, HELPFULNESS: judged, LANGUAGE: frozenset(lengths)}
    return {
        measure: (digest, asked if measure.startswith(SAFETY_PREFIX) else put.get(measure, frozenset()))
        for measure, digest in hashes.items()
    }


def changes(arms: Sequence[ArmSummary], now: Terms, baseline: Report, settings: Settings) -> tuple[Change, ...]:
    """Return how the judged models' measures moved since a baseline.

    A model is compared with the baseline's of its name or, where each report judges one model, with that one. What
    fell is decided by the rule of the rows; the changes of one model are a family of Holm's of their own.

    `now` are this report's terms; only under equal ones is a change tested.
    """
    then = _terms_of(baseline)
    same = {measure for measure in now if now[measure] == then.get(measure)}
    moved: list[Change] = []
    for model, before in _pairs(arms, baseline):
        if before is not None:
            shared = [measure for measure in model.rates if measure in before.rates]
            moved += _decided([_change(model, before, measure, measure in same) for measure in shared], settings)
    return tuple(moved)


def unmatched(arms: Sequence[ArmSummary], now: Terms, baseline: Report) -> tuple[str, ...]:
    """Return in words where the baseline does not compare: a measure that is dropped must not hide its fall."""
    lonely = [model.name for model, before in _pairs(arms, baseline) if before is None]
    then = _terms_of(baseline)
    return (
        *(f"The baseline has no model to compare {name} with." for name in lonely),
        *(f"The baseline asked {name}, and this report did not." for name in then if name not in now),
        *(
            f"The baseline's {_other(name, then[name], now[name])}: its change is told and not tested."
            for name in then
            if name in now and now[name] != then[name]
        ),
    )


def _terms_of(report: Report) -> Terms:
    return terms(report.items_sha256, report.judge, report.data)


def _other(measure: str, then: tuple[str, frozenset[str]], now: tuple[str, frozenset[str]]) -> str:
    if then[0] != now[0]:
        return f"items of {measure} are others"
    theirs, ours = (
        ", ".join(sorted(some - other)) or "unsaid" for some, other in ((then[1], now[1]), (now[1], then[1]))
    )
    return f"{measure} had other terms ({theirs}; here {ours})"


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
