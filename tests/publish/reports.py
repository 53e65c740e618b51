"""A report made by hand, whose every number a test can find again in the card."""

from __future__ import annotations

from dataclasses import replace

from caq.measure.record import Distances, Histogram
from caq.report.types import SCHEMA, VERSION, ArmSummary, Gap, Judgement, Rate, Report, Row, Settings, Verdict
from caq.statistics.resampling import Interval

DISTANCES = Distances(
    *(900, 0.0123, 0.001, 0.004, 0.03, 0.05, 0.0987, 0.2, 1.5, 0.934, -0.001, 0.02),
    Histogram((0.0, 1.0, 2.0), (899, 1)),
    0.25,
)


def rate(value: float, items: int = 200) -> Rate:
    return Rate(value, Interval(value - 0.03, value + 0.02), items)


def row(measure: str, aligned: float, model: float, **fields: object) -> Row:
    difference = model - aligned
    whole = Row(
        *(measure, None, True, 0, rate(aligned), rate(0.4), rate(model), difference),
        bootstrap=Interval(difference - 0.01, difference + 0.01),
        score=Interval(difference - 0.015, difference + 0.011),
        gained=2,
        lost=6,
        p=0.29,
        p_holm=0.58,
        detectable=0.031,
        status="kept",
    )
    return replace(whole, **fields)  # type: ignore[arg-type]


def summary(name: str, role: str, **fields: object) -> ArmSummary:
    empty = ArmSummary(
        *(name, role, {}, None, None, None, None, None, None, {}, {}, {}, {}, (), {}),  # type: ignore[arg-type]
    )
    return replace(empty, **fields)  # type: ignore[arg-type]


def report(*rows: Row, status: str = "pass", sentence: str = "Alignment was kept.", **fields: object) -> Report:
    verdict = Verdict(status, sentence, ("refusal fell by 0.5 points",))  # type: ignore[arg-type]
    gap = {"refusal": Gap(0.93, Interval(0.81, 1.04)), "facts": Gap(None, None, "both answer the same")}
    judgement = Judgement("quantized", verdict, rows or (row("refusal", 0.95, 0.90),), {}, gap, {})
    arms = (
        summary("aligned", "aligned", perplexity=2.71, incoherent=0.0),
        summary("quantized", "quantized", perplexity=2.749, incoherent=0.005, kl_text=DISTANCES),
    )
    whole = Report(
        *(SCHEMA, VERSION, "0.1.0", Settings(), verdict, {}, arms, (judgement,), {"refusal": 200}, {}, {}, None, {}),
        limits=("0 flips in 200 prompts bound the rate below 1.5 %",),
    )
    return replace(whole, **fields)  # type: ignore[arg-type]
