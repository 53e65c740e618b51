"""Comparisons drawn at random, with known losses: what a run of models would leave, of any size, in milliseconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from caq.ledger import Entry
from caq.measure.record import (
    FACTS,
    HELPFULNESS,
    REFUSAL,
    ArmRecord,
    Comparison,
    Distances,
    Histogram,
    Item,
    JudgeCard,
    Outcome,
)

CATEGORIES = (
    "Offensiveness",
    "Unfairness and Bias",
    "Physical Health",
    "Mental Health",
    "Illegal Activities",
    "Ethics and Morality",
    "Privacy and Property",
)
SAFETY = "safety/letter"
SIZES = {SAFETY: 1400, REFUSAL: 300, HELPFULNESS: 250, FACTS: 150}
KINDS = {REFUSAL: ("weapons", "fraud", "hate"), HELPFULNESS: ("homonyms", "figurative language", "safe targets")}
REFUSED = "I'm sorry, but I can't help with that. If you are in danger, please reach out to someone you trust."
ANSWERED = (
    "Sure. Here is how to go about it, one step after the other.\n\n1. First, look at what you have.\n2. Then plan."
)


@dataclass(frozen=True)
class Model:
    """A model to judge: the chance that it leaves the aligned model's answer, and then takes the base's."""

    name: str
    flips: float
    to_base: float = 0.5
    kl: float = 0.05


MODELS = (Model("rtn-w4a4", 0.14, 0.7, 0.4), Model("caq-w4a4", 0.004, 0.3, 0.02))


def sample(sizes: Mapping[str, int] = SIZES, models: Sequence[Model] = MODELS, seed: int = 0) -> Comparison:
    """Return a comparison of an aligned model, its base and some models."""
    generator = np.random.default_rng(seed)
    items = {
        measure: tuple(_item(measure, index, generator) for index in range(size)) for measure, size in sizes.items()
    }
    aligned, base = _Choices({}), _Choices({})
    for measure, asked in items.items():
        aligned.of[measure] = _chosen(asked, 0.86, generator)
        base.of[measure] = _chosen(asked, 0.55, generator)
    arms = [_arm("llama-aligned", "aligned", aligned, items), _arm("llama-base", "base", base, items)]
    for model in models:
        found = {name: _moved(items[name], aligned.of[name], base.of[name], model, generator) for name in items}
        arms.append(_arm(model.name, "quantized", _Choices(found), items))
        kl = [distances(model.kl * scale, generator) for scale in (1.0, 1.6, 9.0, 12.0)]
        arms[-1] = replace(arms[-1], kl_text=kl[0], kl_chat=kl[1], kl_base_text=kl[2], kl_base_chat=kl[3])
    arms[1] = replace(arms[1], kl_text=distances(0.6, generator), kl_chat=distances(1.1, generator))
    judge = JudgeCard("phrases (caq 0.1.0)", "XSTest's labelled completions", 2250, 0.031, 0.012)
    data = {"safety": "safetybench-en.jsonl, sha256 3f9a0c…", "prompts": "xstest_prompts.csv, sha256 77be12…"}
    return Comparison(items, tuple(arms), judge, data)


@dataclass(frozen=True)
class _Choices:
    """By measure, the index of the chosen option; of a prompt 0 is the aligned behaviour."""

    of: dict[str, np.ndarray]


def _item(measure: str, index: int, generator: np.random.Generator) -> Item:
    if measure in KINDS:
        kind = KINDS[measure][index % 3]
        return Item(f"{measure}-{index:05}", kind, f"How do I deal with a case of {kind} in the town of {index}?")
    category = CATEGORIES[index % 7] if measure == SAFETY else ""
    options = tuple(f"{word} what was asked for in case {index}" for word in ("Refuse", "Question", "Do", "Ignore"))
    text = f"Someone asks a colleague for help with a matter of {category.lower()}, number {index}. What is right?"
    return Item(str(index), category, text, options[: 2 + index % 3], int(generator.integers(2 + index % 3)))


def _chosen(items: Sequence[Item], right: float, generator: np.random.Generator) -> np.ndarray:
    options = np.array([len(item.options) or 2 for item in items])
    answers = np.array([item.answer or 0 for item in items])
    other = (answers + 1 + generator.integers(0, options - 1)) % options
    return np.where(generator.random(len(items)) < right, answers, other)


def _moved(
    items: Sequence[Item], aligned: np.ndarray, base: np.ndarray, model: Model, generator: np.random.Generator
) -> np.ndarray:
    options = np.array([len(item.options) or 2 for item in items])
    elsewhere = np.where(generator.random(len(items)) < model.to_base, base, generator.integers(0, options))
    return np.where(generator.random(len(items)) < model.flips, elsewhere, aligned)


def _arm(name: str, role: str, chosen: _Choices, items: Mapping[str, tuple[Item, ...]]) -> ArmRecord:
    outcomes = {
        measure: tuple(
            _outcome(measure, item, int(choice)) for item, choice in zip(asked, chosen.of[measure], strict=True)
        )
        for measure, asked in items.items()
    }
    entry = Entry("quantize", "damping-escalated", "layer 3 needed more damping than asked", {"layer": 3})
    return ArmRecord(
        name,
        role,  # type: ignore[arg-type]
        outcomes,
        perplexity={"aligned": 7.21, "base": 6.4}.get(role, 7.63),
        provenance={"source": f"/models/{name}", "weights": f"sha256 {hash_like(name)}", "code": "caq 0.1.0, 953a5e1"},
        ledger=(entry,) if role == "quantized" else (),
    )


def _outcome(measure: str, item: Item, choice: int) -> Outcome:
    if item.options:
        return Outcome(choice == item.answer, choice)
    refused = (choice == 0) == (measure == REFUSAL)
    return Outcome(choice == 0, None, REFUSED if refused else f"{ANSWERED}\n\n({item.id})")


def hash_like(text: str) -> str:
    """Return 64 hexadecimal digits."""
    return (text.encode().hex() + "0" * 64)[:64]


def distances(scale: float, generator: np.random.Generator, positions: int = 4096) -> Distances:
    """Return distances whose KL is lognormal around a scale."""
    values = scale * generator.lognormal(-0.7, 1.3, positions)
    edges = (0.0, *np.logspace(-6, 1.5, 31).tolist())
    counts, _ = np.histogram(np.clip(values, 0, edges[-1]), edges)
    median, p90, p95, p99, p999, largest = np.quantile(values, (0.5, 0.9, 0.95, 0.99, 0.999, 1.0)).tolist()
    return Distances(
        positions=positions,
        mean=float(values.mean()),
        standard_error=float(values.std() / positions**0.5),
        median=median,
        p90=p90,
        p95=p95,
        p99=p99,
        p999=p999,
        maximum=largest,
        same_top=float(np.exp(-scale)),
        delta_p_mean=-0.011,
        delta_p_rms=0.083,
        histogram=Histogram(edges, tuple(counts.tolist())),
        logit_mse=0.21,
    )
