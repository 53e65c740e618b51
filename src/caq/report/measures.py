"""An arm's numbers and outcomes by the names that tables call them by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from caq.measure.record import LANGUAGE, SAFETY_PREFIX, ArmRecord, Item, Role
from caq.report.pairing import goods, rate
from caq.report.types import Chosen

ABILITY_PREFIX = "ability/"
N_MIX = "n_mix"
#: In the order of a table.
ROLES: Sequence[Role] = ("base", "aligned", "quantized")


def numbers(arm: ArmRecord) -> dict[str, float]:
    """Return every measured quantity by name.

    Names: `perplexity`; `logit_mse`, `kl` (nats) and `same_top` on the text; `kl_chat` on the first response tokens;
    rates in [0, 1] by measure; `n_mix`, the mean share of responses that is of another language than the prompt;
    `ability/<task>`, as lm-eval has it.
    """
    values: dict[str, float] = {}
    if arm.perplexity is not None:
        values["perplexity"] = arm.perplexity
    if arm.kl_text is not None:
        values |= {"logit_mse": arm.kl_text.logit_mse, "kl": arm.kl_text.mean, "same_top": arm.kl_text.same_top}
    if arm.kl_chat is not None:
        values["kl_chat"] = arm.kl_chat.mean
    rates = {measure: rate(goods(outcomes)) for measure, outcomes in arm.outcomes.items()}
    values |= {measure: share.value for measure, share in rates.items() if share is not None}
    mixed = _mixed(arm)
    values |= {N_MIX: sum(mixed) / len(mixed)} if mixed else {}
    return values | {ABILITY_PREFIX + name: ability.value for name, ability in arm.abilities.items()}


def _mixed(arm: ArmRecord) -> list[float]:
    return [outcome.n_mix for outcome in arm.outcomes.get(LANGUAGE, ()) if outcome.n_mix is not None]


def chosen(arm: ArmRecord) -> dict[str, tuple[Chosen, ...]]:
    """Return the options that an arm chose of the safety questions, by protocol."""
    safety = {name: outcomes for name, outcomes in arm.outcomes.items() if name.startswith(SAFETY_PREFIX)}
    return {
        name.removeprefix(SAFETY_PREFIX): tuple(Chosen(outcome.chosen) for outcome in outcomes)
        for name, outcomes in safety.items()
    }


def item_scores(arm: ArmRecord) -> dict[str, tuple[float, ...]]:
    """Return the scores behind each rate, in the order of the items: 1 or 0, or a share of an ability or of N-Mix.

    A measure that was not measured on every item has none.
    """
    scores = {
        measure: tuple(float(bool(outcome.good)) for outcome in outcomes)
        for measure, outcomes in arm.outcomes.items()
        if all(outcome.good is not None for outcome in outcomes)
    }
    scores |= {N_MIX: tuple(_mixed(arm))} if LANGUAGE in scores else {}
    scores |= {ABILITY_PREFIX + name: ability.outcomes for name, ability in arm.abilities.items()}
    return {name: values for name, values in scores.items() if values}


def category_rates(arm: ArmRecord, items: Mapping[str, Sequence[Item]], measure: str) -> dict[str, float]:
    """Return the rate of one measure by category, in order of first appearance."""
    grouped: dict[str, list[float]] = {}
    for item, score in zip(items.get(measure, ()), item_scores(arm).get(measure, ()), strict=False):
        grouped.setdefault(item.category, []).append(score)
    return {name: sum(scores) / len(scores) for name, scores in grouped.items()}


def by_role(arms: Sequence[ArmRecord]) -> dict[str, ArmRecord]:
    """Return arms in the order of a table, under their role where it is theirs alone, or else their name.

    A model in a directory called `aligned` is `aligned (quantized)` beside the aligned model.
    """
    ordered = sorted(arms, key=lambda arm: ROLES.index(arm.role))
    roles = [arm.role for arm in ordered]
    named: dict[str, ArmRecord] = {}
    for arm in ordered:
        name = arm.role if roles.count(arm.role) == 1 else arm.name
        named[f"{name} ({arm.role})" if name in named else name] = arm
    return named


def safety_measures(arm: ArmRecord) -> list[str]:
    """Return the names of an arm's safety measures."""
    return [measure for measure in arm.outcomes if measure.startswith(SAFETY_PREFIX)]
