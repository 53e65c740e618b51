"""Reading lm-eval's results: which metric is taken, and which items may be paired."""

from __future__ import annotations

import json
from typing import Any

import pytest

from caq.files.codec import decode, encode
from caq.lm_eval.abilities import read_ability
from caq.measure.record import Ability, ArmRecord
from caq.report.measures import numbers
from caq.report.rows import paired_abilities
from caq.report.table import cells

SHARES = (1.0, 0.25, 0.5)


def raw(scores: list[Any], value: float, metric: str = "acc", filters: tuple[str, ...] = ("none",)) -> dict[str, Any]:
    """What `simple_evaluate` returns, as far as it is read."""
    samples = [
        {"filter": name, "doc_hash": f"h{index}", metric: score, "arguments": []}
        for name in filters
        for index, score in enumerate(scores)
    ]
    values = {f"{metric},{name}": value for name in filters} | {f"{metric}_stderr,{name}": "N/A" for name in filters}
    return {
        "results": {"task": {"name": "task", "alias": "task", "sample_len": len(scores), **values}},
        "samples": {"task": samples},
        "higher_is_better": {"task": {metric: True}},
        "n-shot": {"task": 2},
    }


def ability(outcomes: tuple[float, ...], items: str = "hash") -> Ability:
    return Ability("acc", sum(outcomes) / len(outcomes), 0.1, True, 0, len(outcomes), 0, outcomes, items)


def test_shares_whose_mean_is_the_value_are_the_outcomes() -> None:
    found = read_ability("task", ["task"], raw([*SHARES], sum(SHARES) / 3), "acc", 0)
    assert (found.outcomes, found.metric, found.shots, found.count) == (SHARES, "acc", 2, 3)
    assert found.standard_error is None
    assert found.parts == {}


@pytest.mark.parametrize(
    ("scores", "value"),
    [([*SHARES], 0.7), ([-1.0, -2.0], -1.5), ([(1, 2), (3, 4)], 0.5), ([1.0, None], 1.0)],
    ids=["not their mean", "not shares", "not numbers", "one without a score"],
)
def test_items_that_do_not_make_up_the_value_are_no_outcomes(scores: list[Any], value: float) -> None:
    found = read_ability("task", ["task"], raw(scores, value), None, 0)
    assert (found.outcomes, found.value, found.count) == ((), value, len(scores))


def test_the_first_filter_is_read_and_named_and_its_items_are_counted_once() -> None:
    found = read_ability("task", ["task"], raw([1.0, 0.0], 0.5, "exact_match", ("strict", "loose")), "acc", 0)
    assert (found.metric, found.count, found.outcomes) == ("exact_match,strict", 2, (1.0, 0.0))


def arm(**abilities: Ability) -> ArmRecord:
    return ArmRecord("model", "quantized", {}, abilities=abilities)


def test_abilities_survive_json_and_are_paired_item_by_item() -> None:
    ours = arm(mc2=ability((0.5, 1.0, 0.0)), only_ours=ability((1.0,)))
    theirs = arm(mc2=ability((0.75, 0.25, 0.0)))
    assert decode(ArmRecord, json.loads(json.dumps(encode(ours))), "arm") == ours
    assert numbers(ours)["ability/mc2"] == 0.5
    paired = paired_abilities(ours.abilities, theirs.abilities)
    assert list(paired) == ["mc2"]
    found = paired["mc2"]
    assert (found.gained, found.lost, found.items, found.p) == (1, 1, 3, 1.0)
    assert found.difference.mean == pytest.approx(0.5 / 3)


def test_different_items_are_not_paired() -> None:
    ours, theirs = ability((0.5, 1.0)), ability((0.5, 1.0), items="other")
    assert paired_abilities({"mc2": ours}, {"mc2": theirs}) == {}


def test_the_table_says_the_metric_and_its_direction_and_writes_shares_in_percent() -> None:
    perplexity = Ability("perplexity", 12.346, None, False, 0, 1, 0, (), "hash")
    headings, rows = cells({"one": [arm(mmlu=ability((1.0, 0.0)), lambada=perplexity)], "none": [arm()]})
    assert headings == ["Model", "mmlu acc % ↑", "lambada perplexity ↓"]
    assert rows == [["one", "50.0", "12.35"], ["none", "n/a", "n/a"]]
