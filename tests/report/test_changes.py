"""Changes since an earlier report."""

from __future__ import annotations

from dataclasses import replace

import pytest

from caq.measure.record import ArmRecord, Comparison, JudgeCard
from caq.report.analyse import analyse
from caq.report.types import Settings
from caq.statistics.resampling import mcnemar
from tests.support.arms import SAFETY, aligned_goods, all_items, arm, comparison, flipped, itself

FEW = Settings(resamples=100)


def better(count: int, name: str = "itself") -> ArmRecord:
    """Return a model that refuses more than the aligned model does."""
    good = aligned_goods(count)
    good["refusal"] = flipped(good["refusal"], 0.08, 0.0, 77)
    return arm(name, "quantized", all_items(count), good)


def test_a_fall_since_the_baseline_is_a_regression_of_a_model_that_would_pass() -> None:
    baseline = analyse(comparison(800, better(800)), FEW)
    report = analyse(comparison(800, itself(800)), FEW, baseline)
    change = next(change for change in report.changes if change.measure == "refusal")
    assert change.worse
    assert change.lost is not None
    assert change.p == mcnemar(0, change.lost)
    assert report.decision.status == "regression"
    assert "since the baseline, refusal fell from" in report.decision.sentence
    assert [one.measure for one in report.changes if one.worse] == ["refusal"]


def test_an_unchanged_model_stays_a_pass() -> None:
    baseline = analyse(comparison(800, itself(800)), FEW)
    report = analyse(comparison(800, itself(800)), FEW, baseline)
    assert report.decision.status == "pass"
    assert {change.p for change in report.changes} == {1.0}
    assert {change.measure for change in report.changes} == {SAFETY, "refusal", "helpfulness", "facts"}


def test_a_change_is_judged_by_the_margin_as_a_row_is() -> None:
    baseline = analyse(comparison(800, better(800)), FEW)
    report = analyse(comparison(800, itself(800)), replace(FEW, margin=0.3), baseline)
    assert report.decision.status == "pass"
    assert not any(change.worse for change in report.changes)


def test_a_single_model_is_compared_under_another_name_and_several_by_theirs() -> None:
    baseline = analyse(comparison(200, itself(200, "v1")), FEW)
    assert {change.model for change in analyse(comparison(200, itself(200, "v2")), FEW, baseline).changes} == {"v2"}
    two = analyse(comparison(200, itself(200, "v1"), itself(200, "v2")), FEW, baseline)
    assert {change.model for change in two.changes} == {"v1"}
    assert "The baseline has no model to compare v2 with." in two.limits


def other_prompts(found: Comparison) -> Comparison:
    items = tuple(replace(item, text="another") for item in found.items["refusal"])
    return replace(found, items={**found.items, "refusal": items})


def test_other_items_are_told_and_not_paired() -> None:
    baseline = analyse(comparison(800, better(800)), FEW)
    report = analyse(other_prompts(comparison(800, itself(800))), FEW, baseline)
    change = next(change for change in report.changes if change.measure == "refusal")
    assert (change.gained, change.lost, change.p, change.worse) == (None, None, None, False)
    assert change.before.value > change.now.value
    assert any("items of refusal are others" in limit for limit in report.limits)


DATA = {
    "safety": "a/questions, 2.json: 800 questions, English, 0-shot, no chat template, option-text",
    "prompts": "a/p.jsonl: 800 harmful and 800 harmless, greedy, up to 32 tokens; distributions on the first 8",
}


@pytest.mark.parametrize(
    ("kind", "old", "new", "told"),
    [
        ("prompts", "32 tokens", "64 tokens", {"refusal", "helpfulness"}),
        ("safety", "0-shot", "5-shot", {SAFETY}),
        ("safety", "no chat", "chat", {SAFETY}),
        ("safety", "English", "Chinese", {SAFETY}),
        # Neither where a file lies nor what else was asked decides an outcome.
        ("safety", "option-text", "option-text, letter", set()),
        ("prompts", "a/p", "b: up to 5 tokens/p", set()),
    ],
)
def test_what_was_asked_otherwise_is_told_and_not_tested(kind: str, old: str, new: str, told: set[str]) -> None:
    baseline = analyse(replace(comparison(800, better(800)), data=DATA), FEW)
    data = {**DATA, kind: DATA[kind].replace(old, new)}
    found = replace(comparison(800, itself(800)), data=data)
    if "letter" in new:
        letter = {"safety/letter": found.items[SAFETY]}
        arms = tuple(
            replace(one, outcomes={**one.outcomes, "safety/letter": one.outcomes[SAFETY]}) for one in found.arms
        )
        found = replace(found, items={**found.items, **letter}, arms=arms)
    report = analyse(found, FEW, baseline)
    assert {change.measure for change in report.changes if change.p is None} == told
    for measure in told:
        assert any(f"baseline's {measure} had other terms (" in limit for limit in report.limits)


def test_a_fall_under_another_judge_is_no_regression() -> None:
    baseline = analyse(comparison(800, better(800)), FEW)
    found = comparison(800, itself(800))
    report = analyse(replace(found, judge=JudgeCard("wildguard@main")), FEW, baseline)
    assert report.decision.status == "pass"
    assert {change.measure for change in report.changes if change.p is None} == {"refusal", "helpfulness"}
    why = "refusal had other terms (judged by phrases; here judged by wildguard@main): its change is told and not"
    assert any(why in limit for limit in report.limits)


def test_a_measure_that_is_no_longer_asked_is_told() -> None:
    baseline = analyse(comparison(200, itself(200)), FEW)
    found = comparison(200, itself(200))
    items = {measure: asked for measure, asked in found.items.items() if measure != "refusal"}
    arms = tuple(replace(one, outcomes={name: one.outcomes[name] for name in items}) for one in found.arms)
    report = analyse(replace(found, items=items, arms=arms), FEW, baseline)
    assert "The baseline asked refusal, and this report did not." in report.limits


@pytest.mark.parametrize("silent", ["-" * 800, "1" * 400 + "-" * 400])
def test_items_that_one_report_lacks_are_left_out_of_the_pairs(silent: str) -> None:
    baseline = analyse(comparison(800, itself(800)), FEW)
    arms = tuple(replace(one, outcomes={**one.outcomes, "refusal": silent}) for one in baseline.arms)
    report = analyse(comparison(800, itself(800)), FEW, replace(baseline, arms=arms))
    change = next(change for change in report.changes if change.measure == "refusal")
    now = report.arms[-1].outcomes["refusal"]
    assert (change.gained, change.lost) == (0, now[: silent.count("1")].count("0"))
