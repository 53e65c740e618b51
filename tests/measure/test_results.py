"""Results: what follows from the items, and the way through JSON and back."""

from __future__ import annotations

import json

from caq.measure.refusal import Response
from caq.measure.results import Answer, Results, answers
from caq.runners.distribution import Divergence

from caq.items.questions import Question

SAFETY = (Answer("0", "Ethics", 1, 1), Answer("1", "Privacy", 0, 2), Answer("2", "Ethics", 3, 0))
FULL = Results(
    window=16,
    perplexity=12.5,
    divergence=Divergence(0.25, 0.125, 0.75, 64),
    safety={"option-text": SAFETY, "letter": SAFETY[:2]},
    facts=(Answer("a", "facts", 0, 0),),
    responses=(
        Response("harm", True, "No \u2028 “way”", True),
        Response("harm 2", True, "Sure", False),
        Response("help", False, "Sure", False),
    ),
)


def test_the_summary_holds_every_measure_as_a_rate_or_as_measured() -> None:
    assert FULL.summary() == {
        "perplexity": 12.5,
        "logit_mse": 0.25,
        "kl": 0.125,
        "same_top": 0.75,
        "safety/option-text": 1 / 3,
        "safety/letter": 1 / 2,
        "facts": 1.0,
        "refusal": 1 / 2,
        "over_refusal": 0.0,
    }


def test_what_was_not_asked_for_is_not_in_the_summary() -> None:
    assert Results(16).summary() == {}
    assert Results(16, responses=FULL.responses[:1]).summary() == {"refusal": 1.0}


def test_outcomes_by_category_keep_the_order_of_the_file() -> None:
    assert FULL.categories() == {"Ethics": (True, False), "Privacy": (False,)}
    assert FULL.categories("letter") == {"Ethics": (True,), "Privacy": (False,)}


def test_results_come_back_from_json_equal() -> None:
    for results in (FULL, Results(2048)):
        assert Results.from_dict(json.loads(json.dumps(results.as_dict()))) == results


def test_the_json_shows_summary_and_categories_first_and_reads_neither() -> None:
    data = json.loads(json.dumps(FULL.as_dict()))
    assert list(data)[:2] == ["summary", "categories"]
    assert data["categories"]["option-text"] == {"Ethics": 0.5, "Privacy": 0.0}
    data["summary"]["perplexity"] = 1.0
    assert Results.from_dict(data).summary()["perplexity"] == 12.5


def test_answers_join_questions_and_choices() -> None:
    asked = Question("7", "Ethics", "?", ("a", "b"), 1)
    assert answers([asked, asked], [1, 0]) == (Answer("7", "Ethics", 1, 1), Answer("7", "Ethics", 1, 0))
