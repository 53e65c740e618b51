"""What a dashboard shows is what the exit status says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest

from caq.measure.record import FACTS, HELPFULNESS, REFUSAL, Comparison
from caq.report.analyse import analyse
from caq.report.render.junit import render_junit
from caq.report.types import Report
from tests.report.render.hostile import hostile
from tests.report.render.samples import SAFETY, Model, sample

SAME = Model("same", 0.0)
WORSE = Model("worse", 0.3, 1.0)


def parsed(comparison: Comparison) -> tuple[Report, Element]:
    report = analyse(comparison)
    return report, ElementTree.fromstring(render_junit(report, comparison).encode("utf-8"))


def findings(suite: Element) -> Mapping[str, str]:
    """Return by case, with its measure where it is a category, what a dashboard calls it."""
    return {
        f"{case.get('classname')}/{case.get('name')}": next(
            (one.tag for one in case if one.tag != "system-out"), "pass"
        )
        for case in suite.iter("testcase")
    }


def without_refusals(comparison: Comparison, measure: str = REFUSAL) -> Comparison:
    model = comparison.arms[-1]
    outcomes = {key: found for key, found in model.outcomes.items() if key != measure}
    missing = replace(model, outcomes=outcomes, unmeasured={measure: "the judge <timed> out\x00"})
    return replace(comparison, arms=(*comparison.arms[:-1], missing))


def test_there_is_a_suite_for_each_model_and_a_case_for_each_measure_and_category() -> None:
    report, root = parsed(sample())
    suites = root.findall("testsuite")
    assert root.tag == "testsuites"
    assert [suite.get("name") for suite in suites] == ["rtn-w4a4", "caq-w4a4"]
    for suite, judgement in zip(suites, report.judgements, strict=True):
        assert len(suite.findall("testcase")) == 1 + len(judgement.rows)
        names = [(case.get("classname"), case.get("name")) for case in suite]
        assert len(set(names)) == len(names)


def test_the_counts_are_those_of_the_cases() -> None:
    _, root = parsed(sample())
    for element in (root, *root.findall("testsuite")):
        assert element.get("tests") == str(len(list(element.iter("testcase"))))
        for key, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert element.get(key) == str(len(list(element.iter(tag))))
    assert root.get("failures") != "0"


def test_a_loss_is_a_failure_of_the_verdict_the_measure_and_the_category() -> None:
    report, root = parsed(sample(models=[WORSE]))
    found = findings(root)
    assert report.decision.status == "regression"
    assert found["caq.worse/verdict"] == "failure"
    assert found["caq.worse/Safety questions (letter)"] == "failure"
    lost = {row.category for row in report.judgements[0].rows if row.status == "lost" and row.measure == SAFETY}
    assert lost
    for category in lost - {None}:
        assert found[f"caq.worse.Safety questions (letter)/{category}"] == "failure"
    message = root.find("testsuite/testcase[@name='Safety questions (letter)']/failure")
    assert message is not None
    assert "lost" in message.get("message", "")
    assert "smallest loss it had 80% power to see" in (message.text or "")


def test_a_pass_is_green_also_where_a_category_is_undecided() -> None:
    report, root = parsed(sample(models=[SAME]))
    assert report.decision.status == "pass"
    assert any(row.status == "undecided" for row in report.judgements[0].rows)
    assert set(findings(root).values()) == {"pass"}
    told = [case.findtext("system-out") or "" for case in root.iter("testcase")]
    assert any("status: undecided" in one for one in told)


def test_a_measure_that_must_be_kept_and_is_undecided_is_an_error() -> None:
    report, root = parsed(sample({SAFETY: 30}, [SAME]))
    assert report.decision.status == "undecided"
    found = findings(root)
    assert (found["caq.same/verdict"], found["caq.same/Safety questions (letter)"]) == ("error", "error")
    assert set(root.find("testsuite").keys()) >= {"tests", "failures", "errors", "skipped"}  # type: ignore[union-attr]


def test_what_could_not_be_measured_is_an_error_with_its_reason() -> None:
    report, root = parsed(without_refusals(sample(models=[SAME])))
    assert report.decision.status == "unmeasured"
    found = findings(root)
    assert (found["caq.same/verdict"], found["caq.same/Harmful prompts refused"]) == ("error", "error")
    told = root.find("testsuite/testcase[@name='Harmful prompts refused']/error")
    assert told is not None
    assert told.get("message") == "Harmful prompts refused: not measured: the judge <timed> out\ufffd"


def test_facts_decide_nothing_and_are_skipped_where_unmeasured() -> None:
    _, lost = parsed(sample({SAFETY: 1400, FACTS: 400}, [SAME]))
    assert findings(lost)["caq.same/Factual questions"] == "pass"
    told = {case.get("name"): case.findtext("system-out") or "" for case in lost.iter("testcase")}
    assert "after Holm" not in told["Factual questions"]
    assert "after Holm" in told["Safety questions (letter)"]
    report, root = parsed(without_refusals(sample(models=[SAME]), FACTS))
    assert report.decision.status == "pass"
    assert findings(root)["caq.same/Factual questions"] == "skipped"


def test_a_broken_model_fails_though_its_rows_could_be_kept() -> None:
    comparison = sample(models=[SAME])
    broken = replace(comparison.arms[-1], perplexity=float("inf"))
    report, root = parsed(replace(comparison, arms=(*comparison.arms[:-1], broken)))
    assert report.decision.status == "broken"
    assert findings(root)["caq.same/verdict"] == "failure"


@pytest.mark.parametrize(
    "comparison",
    [
        sample(models=[SAME]),
        sample(models=[WORSE]),
        sample({HELPFULNESS: 20}, [SAME]),
        without_refusals(sample(models=[SAME])),
        sample(models=[WORSE, SAME]),
        sample({FACTS: 50}, [SAME]),
    ],
    ids=["same", "worse", "few", "unmeasured", "two", "facts"],
)
def test_the_document_is_green_exactly_when_the_verdict_is_a_pass(comparison: Comparison) -> None:
    report, root = parsed(comparison)
    green = root.get("failures") == root.get("errors") == "0"
    assert green == (report.decision.status == "pass")


def test_hostile_names_leave_the_document_well_formed_and_short() -> None:
    comparison = hostile()
    text = render_junit(analyse(comparison), comparison)
    root = ElementTree.fromstring(text.encode("utf-8"))
    assert "<svg onload=" in str(root.find("testsuite").get("name"))  # type: ignore[union-attr]
    assert all(len(one.get("message", "")) <= 300 for one in root.iter())


def test_the_same_report_gives_the_same_bytes() -> None:
    comparison = sample()
    assert render_junit(analyse(comparison), comparison) == render_junit(analyse(sample()), comparison)
