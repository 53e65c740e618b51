"""What a report cannot say, in words and with its own numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from caq.measure.record import HELPFULNESS, REFUSAL, SAFETY_PREFIX, Comparison, JudgeCard
from caq.report.pairing import goods, rate
from caq.report.types import Judgement, Row, Settings
from caq.report.wording import joined, points, title
from caq.statistics.intervals import upper_bound

_NO_VERDICT = (
    "No aligned model was measured beside it: there is no verdict and no distance, and a response counts as coherent "
    "by the rule on its text alone."
)


def limits(comparison: Comparison, judgements: tuple[Judgement, ...], settings: Settings) -> tuple[str, ...]:
    """Return the limits: what the numbers bound, what was not asked, how the judge errs, what a screen is."""
    measures = comparison.items
    said = [*filter(None, [looks_swapped(comparison)])]
    said += _judged(judgements, settings) if judgements else [_NO_VERDICT]
    missing = _not_asked(comparison)
    if missing:
        said.append(f"Not asked: {joined(missing)}.")
    if comparison.judge is not None:
        said.append(_judge(comparison.judge))
    if REFUSAL in measures:
        said.append(
            "Harmful prompts are a screen: they tell of requests like these, put plainly, with greedy decoding; "
            "no attack, no long conversation and no sampling was tried."
        )
    if any(measure.startswith(SAFETY_PREFIX) for measure in measures):
        said.append("Questions with options measure what a model recognises as safe, not how it acts.")
    return tuple(said)


def looks_swapped(comparison: Comparison) -> str:
    """Return that the base refuses clearly more than the aligned model does; empty where it does not."""
    arms = {arm.role: arm.outcomes.get(REFUSAL, ()) for arm in comparison.arms if arm.role != "quantized"}
    aligned, base = (rate(goods(arms.get(role, ()))) for role in ("aligned", "base"))
    if aligned is None or base is None or base.interval.low <= aligned.interval.high:
        return ""
    said = (
        f"The base refuses {points(base.value)} % of the harmful prompts, the aligned model {points(aligned.value)} %"
    )
    return f"{said}: are --reference and --base swapped?"


def _judged(judgements: tuple[Judgement, ...], settings: Settings) -> Iterator[str]:
    yield from (_bounds(judgement) for judgement in judgements if any(row.decides for row in judgement.rows))
    yield (
        f"A loss within the margin of {points(settings.margin)} points is accepted, and the probability of a false "
        f"alarm is at most {100 * settings.alpha:g} % for each model, and that again for its changes since a baseline; "
        "categories can raise an alarm and need not be kept."
    )
    yield from _left_out(judgements)
    for measure, gap in judgements[0].gap.items():
        if gap.value is None:
            yield f"{title(measure)}: {gap.reason}; a model has little to lose there, and to keep it says little."


def _bounds(judgement: Judgement) -> str:
    bounds = joined([_bound(row) for row in judgement.rows if row.decides])
    return f"{judgement.model}: a screen bounds what it probed, at 95 %: {bounds}."


def _bound(row: Row) -> str:
    items = row.model.items
    bound = _rounded_up(100 * upper_bound(row.lost, items))
    return f"{row.lost:,} of {items:,} {title(row.measure)} items turned bad, which bounds their rate below {bound} %"


def _rounded_up(percent: float) -> str:
    digits = max(0, 1 - math.floor(math.log10(percent)))
    return f"{math.ceil(percent * 10**digits) / 10**digits:.{digits}f}"


def _left_out(judgements: tuple[Judgement, ...]) -> list[str]:
    return [
        f"{judgement.model}: {row.left_out:,} of {row.left_out + row.model.items:,} {title(row.measure)} items have no "
        "outcome of it or of the aligned model and are in no number of that row."
        for judgement in judgements
        for row in judgement.rows
        if row.left_out and row.category is None
    ]


def _not_asked(comparison: Comparison) -> list[str]:
    arms, measures = comparison.arms, comparison.items
    asked: Mapping[str, bool] = {
        "safety questions": any(measure.startswith(SAFETY_PREFIX) for measure in measures),
        "harmful prompts": REFUSAL in measures,
        "harmless prompts": HELPFULNESS in measures,
        "a base model, without which neither the gap retained nor the drift is known": any(
            arm.role == "base" for arm in arms
        ),
        "perplexity": any(arm.perplexity is not None for arm in arms),
        "distances of next-token distributions": any(arm.kl_text or arm.kl_chat for arm in arms),
    }
    return [name for name, there in asked.items() if not there]


def _judge(card: JudgeCard) -> str:
    if card.missed_refusals is None or card.false_refusals is None:
        return f"Refusals are what {card.name} calls refusals; how often it errs has not been measured."
    return (
        f"Refusals are what {card.name} calls refusals: of {card.labelled:,} labelled responses ({card.measured_on}) "
        f"it missed {points(card.missed_refusals)} % of the refusals and took {points(card.false_refusals)} % of the "
        "answers for refusals."
    )
