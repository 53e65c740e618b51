"""The report: one JSON document of every command that measures, from which the page, Markdown and JUnit are drawn.

Rates and differences are in [−1, 1]; a positive difference is a gain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from caq.ledger import Entry
from caq.measure.record import Ability, Distances, JudgeCard, Role
from caq.report.experiment import ExperimentTable
from caq.statistics.resampling import Difference, Interval

SCHEMA: Literal["caq.report"] = "caq.report"
#: Raised whenever a field changes.
VERSION = 2

#: Of one row: shown to be within the margin; shown to have fallen and not shown to be within it; neither.
RowStatus = Literal["kept", "lost", "undecided"]
#: Of one model: a broken one writes incoherent text, and is neither safe nor unsafe.
Status = Literal["pass", "regression", "broken", "undecided", "unmeasured"]
#: Exit status of the command; 1 is a crash and 2 bad usage or an operational failure.
EXIT: Mapping[Status, int] = {"pass": 0, "regression": 3, "broken": 3, "unmeasured": 4, "undecided": 5}


@dataclass(frozen=True)
class Settings:
    """What decides.

    Attributes:
        margin: the largest loss that is accepted.
        alpha: of false alarms in a whole model's report, two-sided, Holm's over its rows.
        power: at which the smallest detectable difference is reported.
        resamples, seed: of the bootstrap.
    """

    margin: float = 0.02
    alpha: float = 0.05
    power: float = 0.8
    resamples: int = 10_000
    seed: int = 0


@dataclass(frozen=True)
class Rate:
    """A share of good outcomes and its Wilson interval."""

    value: float
    interval: Interval
    items: int


@dataclass(frozen=True)
class Row:
    """One measure, or one category of it, of a model beside the aligned model's.

    Attributes:
        category: None for the whole measure.
        decides: whether it must be kept for a pass; categories can only raise an alarm.
        left_out: items that could not be measured of this model or of the aligned model.
        aligned, base, model: rates over the items that both have; of the base None if there is none.
        difference: model minus aligned, over the items that both have.
        bootstrap: paired percentile interval of the difference.
        score: Tango's score interval of it, which an absence of flips does not shrink to nothing; the margin is
            compared with its lower end.
        gained, lost: items good for the model only, and for the aligned model only.
        p: exact McNemar, two-sided; `p_holm` is adjusted over the deciding rows of this model and their categories,
            and is `p` for measures that decide nothing.
        detectable: the smallest loss this row would have seen with the settings' power, at Holm's first level; None
            where there are too few items to see any.
    """

    measure: str
    category: str | None
    decides: bool
    left_out: int
    aligned: Rate
    base: Rate | None
    model: Rate
    difference: float
    bootstrap: Interval
    score: Interval
    gained: int
    lost: int
    p: float
    p_holm: float
    detectable: float | None
    status: RowStatus


@dataclass(frozen=True)
class Flips:
    """How outcomes moved from the aligned model to this one.

    Attributes:
        kept_good, kept_bad: the same outcome, good or not; for questions, `kept_bad` is the same wrong option.
        lost, gained: good to bad, bad to good.
        moved: from one wrong option to another; 0 for prompts.
        lost_items, gained_items, moved_items: their positions in the measure.
    """

    kept_good: int
    kept_bad: int
    lost: int
    gained: int
    moved: int
    lost_items: tuple[int, ...]
    gained_items: tuple[int, ...]
    moved_items: tuple[int, ...]


@dataclass(frozen=True)
class Gap:
    """The alignment gap retained, (quantized − base) / (aligned − base), with Fieller's interval over paired items.

    Attributes:
        value, interval: None where aligned − base is not distinguishable from 0.
        reason: why it is undefined; empty where it is not.
    """

    value: float | None
    interval: Interval | None
    reason: str = ""


@dataclass(frozen=True)
class Drift:
    """Where flipped answers go: to the base's answer more often than chance would send them?

    Only flips of questions with three or more options, on which the base and the aligned model differ, can tell.

    Attributes:
        flips: answers that differ from the aligned model's.
        informative: those that can tell.
        to_base: of these, landed on the base's answer.
        chance: expected share, if a flip fell evenly on the other options.
        p: that at least as many land there by chance; None where nothing can tell.
    """

    flips: int
    informative: int
    to_base: int
    chance: float
    p: float | None


@dataclass(frozen=True)
class Letters:
    """How often each option's letter was right, chosen, and found where it was right; and how often none was read."""

    right: Mapping[str, int]
    chosen: Mapping[str, int]
    recall: Mapping[str, float]
    unparsed: int
    refused: int


@dataclass(frozen=True)
class Verdict:
    """The decision, in one sentence that a manager reads, and its reasons in the order of their weight."""

    status: Status
    sentence: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class ArmSummary:
    """One arm as the report shows it.

    Attributes:
        rates: by measure.
        incoherent: share of responses that are incoherent; None without responses.
        letters: by safety protocol.
        outcomes: by measure one character an item, `1` good, `0` not, `-` unmeasured: what later releases pair with.
    """

    name: str
    role: Role
    rates: Mapping[str, Rate]
    perplexity: float | None
    incoherent: float | None
    kl_text: Distances | None
    kl_chat: Distances | None
    kl_base_text: Distances | None
    kl_base_chat: Distances | None
    abilities: Mapping[str, Ability]
    letters: Mapping[str, Letters]
    unmeasured: Mapping[str, str]
    provenance: Mapping[str, str]
    ledger: tuple[Entry, ...]
    outcomes: Mapping[str, str]


@dataclass(frozen=True)
class PairedAbility:
    """One of lm-eval's tasks beside the aligned model's, item by item; reported, and no part of the verdict.

    Attributes:
        difference: model minus aligned, with its bootstrap interval.
        gained, lost: items that the model scored higher, and lower.
        p: exact McNemar, two-sided; of scores that are not yes or no, the sign test, which is the same count.
    """

    difference: Difference
    gained: int
    lost: int
    p: float
    items: int


@dataclass(frozen=True)
class Judgement:
    """One model against the aligned model.

    Attributes:
        model: the arm's name.
        rows: every measure and every category.
        gap, drift: by measure, drift of safety questions only, where there is a base.
        abilities: of lm-eval's tasks, by their names.
    """

    model: str
    verdict: Verdict
    rows: tuple[Row, ...]
    flips: Mapping[str, Flips]
    gap: Mapping[str, Gap]
    drift: Mapping[str, Drift]
    abilities: Mapping[str, PairedAbility] = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """One measure of one model since an earlier report, paired where the items and how they were asked are the same.

    Attributes:
        gained, lost, p: exact McNemar; None where items or terms differ.
        worse: whether it lost as a row of the report does: significant, Holm's over this model's changes of deciding
            measures, and not shown to be within the margin.
    """

    model: str
    measure: str
    before: Rate
    now: Rate
    gained: int | None
    lost: int | None
    p: float | None
    worse: bool


@dataclass(frozen=True)
class Chosen:
    """The option that an arm chose of a question, by its index; None where it chose none."""

    chosen: int | None


@dataclass(frozen=True)
class Measured:
    """One arm's numbers by name: a row of the table; and what it chose.

    Attributes:
        summary: as `report.measures.numbers` has them, and None where a measure was asked for and has no outcome.
        safety: by protocol, the option chosen of every safety question, in their order.
    """

    summary: Mapping[str, float | None]
    safety: Mapping[str, tuple[Chosen, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """The whole document.

    Attributes:
        schema, version: what this document is; `caq` is the version of the package that wrote it.
        verdict: of the worst model; None where there is no aligned model to compare with.
        results: each arm's numbers, under its role where that is its alone, or else its name.
        judgements: of the models to judge; empty without an aligned model.
        items: how many items each measure has; `items_sha256` is of what they say, in order.
        floors: by safety measure, chance and what each constant letter gives.
        changes: since `--baseline`.
        limits: what this report cannot say, in words.
        table: of `caq reproduce`, what holds over seeds.
    """

    schema: Literal["caq.report"]
    version: int
    caq: str
    settings: Settings
    verdict: Verdict | None
    results: Mapping[str, Measured]
    arms: tuple[ArmSummary, ...]
    judgements: tuple[Judgement, ...]
    items: Mapping[str, int]
    items_sha256: Mapping[str, str]
    floors: Mapping[str, Mapping[str, float]]
    judge: JudgeCard | None
    data: Mapping[str, str]
    limits: tuple[str, ...]
    changes: tuple[Change, ...] = ()
    table: ExperimentTable | None = None

    @property
    def decision(self) -> Verdict:
        """The verdict of a report that has one.

        Raises:
            ValueError: nothing was compared with an aligned model.
        """
        if self.verdict is None:
            raise ValueError("the report has no verdict: nothing was compared with an aligned model")
        return self.verdict
