"""What one arm said to the items of a comparison: the input of the report, each part with a form on disk.

A *measure* is a list of items with one kind of outcome, so defined that good is good and a loss is a fall:

- `safety/<protocol>`: questions in SafetyBench's format; good is the right option
- `refusal`: harmful prompts; good is a refusal
- `helpfulness`: harmless prompts, look-alikes of harmful ones among them; good is an answer

Reported, and no part of the verdict:

- `ended/<tokens>`: harmless prompts; good is a response that ends by itself within so many tokens
- `language`: all prompts; good is a response in the prompt's language
- `facts`: factual questions; good is the right option
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from caq.ledger import Entry

REFUSAL, HELPFULNESS, FACTS, SAFETY_PREFIX = "refusal", "helpfulness", "facts", "safety/"
LANGUAGE, ENDED_PREFIX = "language", "ended/"

#: The aligned model, its base, or a model to judge.
Role = Literal["aligned", "base", "quantized"]
#: Why an outcome is not what was asked for; `incoherent` is a response that is incoherent, `unfinished` one that is
#: still a thought where it ends, and no answer.
Failure = Literal["unparsed", "refused", "incoherent", "unfinished"]


@dataclass(frozen=True)
class Item:
    """One question or prompt, as every arm was asked it.

    Attributes:
        id: unique within its measure.
        category: SafetyBench's, or the kind of a prompt; empty where there is none.
        text: the question or the prompt.
        options: of a question, in the order of their letters; empty for a prompt.
        answer: index of the right option; None for a prompt.
    """

    id: str
    category: str
    text: str
    options: tuple[str, ...] = ()
    answer: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What one arm made of one item.

    Attributes:
        good: the aligned outcome; None where nothing could be measured, as with a judge that abstains.
        chosen: index of the chosen option; None for prompts, and where no option was chosen.
        response: what was written; None where nothing was.
        failure: why there is no choice, or why a response does not count.
        n_mix: of `language`: share of the response's n-grams that are of another language than the prompt.
    """

    good: bool | None
    chosen: int | None = None
    response: str | None = None
    failure: Failure | None = None
    n_mix: float | None = None


@dataclass(frozen=True)
class Histogram:
    """Counts between rising edges, one fewer than those."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Distances:
    """How far one model's next-token distributions are from another's, in llama.cpp's terms, over positions.

    Attributes:
        mean, median, p90, p95, p99, p999, maximum: of KL(theirs ‖ ours), in nats; `p999` is the 99.9th percentile.
        standard_error: of the mean.
        same_top: share of positions with the same most likely token.
        delta_p_mean, delta_p_rms: of p_ours − p_theirs of the token in the text, in [−1, 1].
        histogram: of the KL values.
        logit_mse: mean squared difference of the logits, over positions and vocabulary (the paper's Table 2).
    """

    positions: int
    mean: float
    standard_error: float
    median: float
    p90: float
    p95: float
    p99: float
    p999: float
    maximum: float
    same_top: float
    delta_p_mean: float
    delta_p_rms: float
    histogram: Histogram
    logit_mse: float


@dataclass(frozen=True)
class Ability:
    """One task of lm-eval, or one group of tasks such as MMLU.

    Attributes:
        metric: lm-eval's name for the value, such as `acc_norm`; behind a comma its filter, if it has one.
        value: as lm-eval reports it: a share in [0, 1] for accuracies, anything for other metrics.
        standard_error: lm-eval's, of the value; None where it gives none.
        higher_is_better: the metric's direction.
        shots: solved examples before each item.
        count: items measured.
        truncated: requests longer than the model's context, which lm-eval cuts at the left.
        outcomes: each item's score, in order, in [0, 1]; empty where the value is not their mean.
        items: a hash of the items in order; only results of equal items can be paired.
        parts: the value of each member of a group, by lm-eval's name.
    """

    metric: str
    value: float
    standard_error: float | None
    higher_is_better: bool
    shots: int
    count: int
    truncated: int
    outcomes: tuple[float, ...]
    items: str
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ArmRecord:
    """Everything that was measured of one model.

    Attributes:
        name: as the report calls it, unique among the arms.
        role: what it is to the others.
        outcomes: by measure, in the order of the measure's items.
        unmeasured: measures that were asked for and could not be taken, with the reason in words.
        perplexity: of the plain text, or None.
        kl_text: KL(aligned ‖ this) on the plain text, or None.
        kl_chat: the same on the first response tokens of chat-formatted prompts.
        kl_base_text, kl_base_chat: KL(base ‖ this) on the same positions.
        abilities: lm-eval's tasks, by their names.
        provenance: source, hashes of weights, format, recipe and code, in words.
        ledger: what the run that made it did otherwise than asked.
    """

    name: str
    role: Role
    outcomes: Mapping[str, tuple[Outcome, ...]]
    unmeasured: Mapping[str, str] = field(default_factory=dict)
    perplexity: float | None = None
    kl_text: Distances | None = None
    kl_chat: Distances | None = None
    kl_base_text: Distances | None = None
    kl_base_chat: Distances | None = None
    abilities: Mapping[str, Ability] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)
    ledger: tuple[Entry, ...] = ()


@dataclass(frozen=True)
class JudgeCard:
    """Who calls a response a refusal, and how often people disagree.

    Attributes:
        name: of the judge, with its revision where it is a model.
        measured_on: on which labelled responses its errors were counted; empty if nobody has.
        missed_refusals: share of people's refusals that it calls answers; None if not measured.
        false_refusals: share of people's answers that it calls refusals; None if not measured.
    """

    name: str
    measured_on: str = ""
    labelled: int = 0
    missed_refusals: float | None = None
    false_refusals: float | None = None


@dataclass(frozen=True)
class Comparison:
    """All arms on the same items: what `analyse` reads.

    Attributes:
        items: by measure.
        arms: the aligned model if there is one, then the base if there is one, then the models to judge.
        judge: of the responses; None if there are none.
        data: what was asked: files with their hashes, protocols, formats, in words.
    """

    items: Mapping[str, tuple[Item, ...]]
    arms: tuple[ArmRecord, ...]
    judge: JudgeCard | None = None
    data: Mapping[str, str] = field(default_factory=dict)
