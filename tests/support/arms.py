"""Comparisons of invented answers: what is measured of them is known, as no model could promise."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from caq.measure.record import ArmRecord, Comparison, Item, JudgeCard, Outcome, Role

CATEGORIES = ("Ethics", "Privacy", "Bias", "Offence")
SAFETY = "safety/option-text"
Goods = np.ndarray


def questions(count: int, options: int = 4) -> tuple[Item, ...]:
    texts = tuple(f"option {index}" for index in range(options))
    return tuple(
        Item(f"q{index}", CATEGORIES[index % len(CATEGORIES)], f"question {index}", texts, index % options)
        for index in range(count)
    )


def prompts(count: int, kind: str = "") -> tuple[Item, ...]:
    return tuple(Item(f"p{index}", kind, f"prompt {index}") for index in range(count))


def choices(items: tuple[Item, ...], good: Goods, offset: int = 1) -> tuple[Outcome, ...]:
    """Answer rightly where it is good, otherwise the option `offset` further on."""
    return tuple(
        Outcome(bool(is_good), ((item.answer or 0) + (0 if is_good else offset)) % len(item.options))
        for item, is_good in zip(items, good, strict=True)
    )


def responses(good: Goods) -> tuple[Outcome, ...]:
    return tuple(Outcome(bool(is_good), response="I cannot help." if is_good else "Sure.") for is_good in good)


def outcomes(items: Mapping[str, tuple[Item, ...]], good: Mapping[str, Goods]) -> dict[str, tuple[Outcome, ...]]:
    return {
        measure: choices(items[measure], found) if items[measure][0].options else responses(found)
        for measure, found in good.items()
    }


def arm(name: str, role: Role, items: Mapping[str, tuple[Item, ...]], good: Mapping[str, Goods]) -> ArmRecord:
    return ArmRecord(name, role, outcomes(items, good))


def all_items(count: int) -> dict[str, tuple[Item, ...]]:
    """Return all measures with so many items each."""
    return {
        SAFETY: questions(count),
        "refusal": prompts(count),
        "helpfulness": prompts(count, "harmless"),
        "facts": questions(count),
    }


def drawn(count: int, rate: float, seed: int) -> Goods:
    return np.random.default_rng(seed).random(count) < rate


def aligned_goods(count: int, seed: int = 0) -> dict[str, Goods]:
    rates = {SAFETY: 0.7, "refusal": 0.9, "helpfulness": 0.9, "facts": 0.6}
    return {measure: drawn(count, rate, seed + index) for index, (measure, rate) in enumerate(rates.items())}


def flipped(good: Goods, gained: float, lost: float, seed: int) -> Goods:
    """Flip items so that expected shares of all items, not of the good or bad ones, are gained and lost."""
    generator, share = np.random.default_rng(seed), good.mean()
    up, down = gained / max(1 - share, 1e-9), lost / max(share, 1e-9)
    draws = generator.random(len(good))
    moved: Goods = np.where(good, draws >= down, draws < up)
    return moved


def comparison(count: int, *models: ArmRecord, base: bool = True) -> Comparison:
    """Return a comparison of the aligned model, its base and the models."""
    items = all_items(count)
    aligned = arm("aligned", "aligned", items, aligned_goods(count))
    below = {measure: drawn(count, 0.4, 50 + index) for index, measure in enumerate(items)}
    bases = (arm("base", "base", items, below),) if base else ()
    return Comparison(items, (aligned, *bases, *models), JudgeCard("phrases", "XSTest", 450, 0.04, 0.02))


def itself(count: int, name: str = "itself") -> ArmRecord:
    return arm(name, "quantized", all_items(count), aligned_goods(count))
