"""The JSON form of a report, and so of every type in it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caq.errors import InvalidInput
from caq.ledger import Entry
from caq.measure.record import ArmRecord, Comparison, Distances, Histogram, Item, JudgeCard, Outcome
from caq.report.analyse import analyse
from caq.report.document import from_json, to_json
from caq.report.types import Report, Settings
from tests.support.arms import comparison, itself

FEW = Settings(resamples=50)
NUMBERS = st.floats(allow_nan=False)
COUNTS = st.integers(0, 10**9)
# Any text at all, lone surrogates included: names come from files.
TEXTS = st.text(st.characters(exclude_categories=()), max_size=8)
DETAILS = st.dictionaries(
    TEXTS,
    st.recursive(st.none() | st.booleans() | st.integers() | TEXTS, lambda inner: st.lists(inner, max_size=2)),
    max_size=2,
)
JSON_READY = st.builds(Entry, TEXTS, TEXTS, TEXTS, DETAILS)
DISTANCES = st.builds(
    Distances,
    COUNTS,
    *[NUMBERS] * 11,
    st.builds(Histogram, st.tuples(NUMBERS, NUMBERS), st.tuples(COUNTS)),
    NUMBERS,
)
OUTCOMES = st.builds(
    Outcome,
    st.sampled_from([True, False, None]),
    st.none() | st.integers(0, 3),
    st.none() | TEXTS,
    st.sampled_from([None, "unparsed", "refused", "incoherent"]),
)
MEASURES = ("safety/letter", "refusal", "facts")


@st.composite
def comparisons(draw: st.DrawFn) -> Comparison:
    count = draw(st.integers(1, 6))
    options = ("a", "b", "c", "d")
    items = {
        measure: tuple(Item(str(i), draw(TEXTS), draw(TEXTS), options, i % 4) for i in range(count))
        for measure in MEASURES
    }
    names = draw(st.lists(TEXTS, min_size=3, max_size=4, unique=True))
    roles = ("aligned", "base", "quantized", "quantized")
    return Comparison(
        items,
        tuple(
            ArmRecord(
                name,
                role,  # type: ignore[arg-type]
                {measure: tuple(draw(OUTCOMES) for _ in range(count)) for measure in MEASURES},
                draw(st.dictionaries(TEXTS, TEXTS, max_size=1)),
                draw(st.none() | NUMBERS),
                draw(st.none() | DISTANCES),
                provenance=draw(st.dictionaries(TEXTS, TEXTS, max_size=1)),
                ledger=tuple(draw(st.lists(JSON_READY, max_size=1))),
            )
            for name, role in zip(names, roles, strict=False)
        ),
        draw(
            st.none()
            | st.builds(JudgeCard, TEXTS, TEXTS, COUNTS, st.none() | st.floats(0, 1), st.none() | st.floats(0, 1))
        ),
        draw(st.dictionaries(TEXTS, TEXTS, max_size=1)),
    )


@given(comparisons())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_any_comparison_makes_a_report_that_comes_back_from_its_json(found: Comparison) -> None:
    report = analyse(found, FEW)
    text = to_json(report)
    assert from_json(text) == report
    assert to_json(from_json(text)) == text
    json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
    text.encode("ascii")


def report() -> Report:
    return analyse(comparison(30, itself(30)), FEW)


def test_a_report_with_a_baseline_comes_back() -> None:
    found = analyse(comparison(30, itself(30)), FEW, report())
    assert found.changes
    assert from_json(to_json(found)) == found


def test_two_reports_of_the_same_results_are_the_same_bytes() -> None:
    assert to_json(report()) == to_json(report())


def test_a_perplexity_that_is_no_number_is_told_all_the_same() -> None:
    broken = analyse(comparison(30, replace(itself(30), perplexity=math.nan)), FEW)
    back = from_json(to_json(broken)).arms[-1].perplexity
    assert back is not None
    assert math.isnan(back)
    assert json.loads(to_json(broken))["arms"][-1]["perplexity"] == "NaN"


def changed(**values: Any) -> str:
    return json.dumps({**json.loads(to_json(report())), **values})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "schema None"),
        (changed(schema="caq.results"), "schema 'caq.results', version 2, and this version of CAQ reads 'caq.report'"),
        (changed(version=1), "version 1, and this version of CAQ reads"),
        (changed(extra=1), "a field 'extra' that this version does not know"),
        (changed(caq=3), "report.caq is 3: input should be a valid string"),
        (changed(settings={"margin": "wide"}), "report.settings.margin is 'wide': input should be a valid number"),
        (changed(settings={"margin": True}), "report.settings.margin is True"),
        (changed(arms=[{}]), "report.arms[0] lacks the field 'role'"),
        (changed(settings=None), "report.settings is None: "),
        (changed(limits="none"), "report.limits is 'none': "),
        (changed(limits=[1]), "report.limits[0] is 1"),
        (changed(items=[]), "report.items is []: "),
        (changed(items={"refusal": 2.5}), "report.items.refusal is 2.5: input should be a valid integer"),
        (changed(items={"refusal": 2}), "itself's outcomes of refusal are not 2 marks"),
        (
            changed(verdict={"status": "fine", "sentence": "", "reasons": []}),
            "report.verdict.status is 'fine': input should be",
        ),
        (to_json(report()).replace("0.02", "NaN", 1), "NaN is no number"),
        (to_json(report()).replace("0.02", "1" + "0" * 400, 1), "report.settings.margin is 1000"),
    ],
)
def test_what_is_no_report_is_refused_by_name(text: str, problem: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        from_json(text)
    assert problem in "\n".join(caught.value.problems)


def test_all_problems_of_a_report_come_at_once() -> None:
    with pytest.raises(InvalidInput) as caught:
        from_json(changed(caq=3, extra=1, limits=[1, 2]))
    assert len(caught.value.problems) == 4
