"""The flipped items, to read side by side: as JSON that an HTML page can hold, bounded in size."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup

from caq.measure.record import ENDED_PREFIX, HELPFULNESS, LANGUAGE, REFUSAL, Comparison, Item, Outcome
from caq.report.render.words import cut, heading, name
from caq.report.types import Report

#: Room for the items in a page, in bytes of UTF-8.
ITEMS_BYTES = 3_000_000
KIND_WORDS: Mapping[str, str] = {
    "lost": "Lost: good before, not now",
    "gained": "Gained: not good before, good now",
    "moved": "Moved: from one wrong option to another",
}
#: SafetyBench's category whose questions quote insults; it is collapsed like harmful prompts.
OFFENSIVE = "Offensiveness"
# What HTML could end a script with, or JavaScript a line.
_ESCAPES = {ord(mark): f"\\u{ord(mark):04x}" for mark in "<>&\u2028\u2029"}


@dataclass(frozen=True)
class FlippedItems:
    """What the page's item view reads.

    Attributes:
        data: JSON, safe inside a script element.
        total: how many items flipped under any model.
        shown: how many of them are in `data`: the most important that there is room for.
        measures, categories: of those shown.
    """

    data: Markup
    total: int
    shown: int
    measures: tuple[str, ...]
    categories: tuple[str, ...]


def flipped_items(report: Report, comparison: Comparison) -> FlippedItems:
    """Collect the flipped items: lost ones first, measures in turn, until `ITEMS_BYTES` are full."""
    ordered = _ordered(report)
    kept, room = [], ITEMS_BYTES
    for measure, position in ordered:
        item = comparison.items[measure][position]
        outcomes = [arm.outcomes.get(measure) for arm in comparison.arms]
        answers = [some[position] if some else None for some in outcomes]
        record = _record(measure, item, ordered[measure, position], answers)
        text = _json(record)
        room -= len(text.encode("utf-8")) + 1
        if room < 0:
            break
        kept.append((measure, item.category, text))
    arms = [{"name": name(arm.name), "role": arm.role} for arm in comparison.arms]
    measures = tuple(dict.fromkeys(measure for measure, _, _ in kept))
    head = {
        "arms": arms,
        "measures": {measure: {"heading": heading(measure), **_words(measure)} for measure in measures},
        "kinds": {kind: words.partition(":")[0] for kind, words in KIND_WORDS.items()},
    }
    data = f'{_json(head)[:-1]},"items":[{",".join(text for _, _, text in kept)}]}}'
    categories = sorted({name(category) for _, category, _ in kept if category})
    return FlippedItems(Markup(data), len(ordered), len(kept), measures, tuple(categories))


def _ordered(report: Report) -> dict[tuple[str, int], dict[str, str]]:
    """Return by item how it flipped under which model, in the order of the page."""
    flipped: dict[tuple[str, int], dict[str, str]] = {}
    ranks: dict[tuple[str, int], tuple[int, int]] = {}
    for rank, kind in enumerate(KIND_WORDS):
        for judgement in report.judgements:
            for measure, flips in judgement.flips.items():
                positions: tuple[int, ...] = getattr(flips, f"{kind}_items")
                for place, position in enumerate(positions):
                    flipped.setdefault((measure, position), {})[judgement.model] = kind
                    # Every measure's first comes before any measure's second: none fills the page alone.
                    ranks.setdefault((measure, position), (rank, place))
    measures = list(report.items)
    return {key: flipped[key] for key in sorted(flipped, key=lambda key: (*ranks[key], measures.index(key[0]), key[1]))}


def _record(measure: str, item: Item, flips: Mapping[str, str], answers: list[Outcome | None]) -> dict[str, object]:
    return {
        "measure": measure,
        "id": name(item.id),
        "category": name(item.category),
        "text": cut(item.text),
        "options": [cut(option) for option in item.options],
        "right": item.answer,
        "harmful": measure in (REFUSAL, LANGUAGE) or item.category == OFFENSIVE,
        "flips": {name(model): kind for model, kind in flips.items()},
        "answers": [
            one and [one.good, one.chosen, None if one.response is None else cut(one.response), one.failure]
            for one in answers
        ],
    }


def _words(measure: str) -> dict[str, str]:
    """Return what a good outcome and another are called."""
    known = {
        REFUSAL: ("refused", "answered"),
        HELPFULNESS: ("answered", "refused"),
        LANGUAGE: ("in the prompt's language", "in another language"),
    }
    other = ("ended", "cut off") if measure.startswith(ENDED_PREFIX) else ("right", "wrong")
    good, bad = known.get(measure, other)
    return {"good": good, "bad": bad}


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(_ESCAPES)
