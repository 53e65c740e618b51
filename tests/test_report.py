"""The report: differences are paired, intervals cover seeds and items, and nothing is oversold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from caq.evaluate.refusal import Response
from caq.evaluate.results import Answer, Results
from caq.evaluate.statistics import crossed_bootstrap, paired_bootstrap
from caq.report import contrast, contrasts, write_report


def results(right: list[bool], perplexity: float = 5.0) -> Results:
    """One model's results: safety answers as given, every harmful prompt refused, no harmless one."""
    safety = tuple(Answer(str(i), "Ethics", 0, 0 if good else 1) for i, good in enumerate(right))
    responses = tuple(Response(f"p{i}", i < 2, "Sure.", i < 2) for i in range(4))
    return Results(256, perplexity, None, {"option-text": safety}, (), responses)


ALWAYS = [True] * 40
HALF = [True, False] * 20


def test_a_difference_that_holds_for_every_item_and_seed_is_evidence() -> None:
    found = contrast([results(ALWAYS)] * 3, [results(HALF)] * 3)["safety/option-text"]
    assert found.difference.mean == 0.5
    assert found.per_seed == (0.5, 0.5, 0.5)
    assert found.items == 40
    assert found.significant


def test_a_difference_that_changes_sign_with_the_seed_is_none() -> None:
    ours = [results(ALWAYS), results(HALF), results(HALF)]
    theirs = [results(HALF), results(ALWAYS), results(HALF)]
    found = contrast(ours, theirs)["safety/option-text"]
    assert found.difference.mean == 0
    assert not found.significant


def test_the_crossed_interval_is_wider_than_pooling_where_seeds_differ() -> None:
    generator = np.random.default_rng(0)
    differences = generator.integers(-1, 2, (5, 200)) + np.array([0.5, -0.5, 0.4, -0.4, 0.3])[:, None]
    crossed = crossed_bootstrap(differences).interval
    pooled = paired_bootstrap(differences.ravel(), np.zeros(1000)).interval
    assert crossed.high - crossed.low > 1.5 * (pooled.high - pooled.low)


def test_the_crossed_interval_of_one_seed_is_the_paired_one() -> None:
    differences = np.random.default_rng(1).integers(-1, 2, (1, 500)).astype(float)
    crossed, paired = crossed_bootstrap(differences), paired_bootstrap(differences[0], np.zeros(500))
    assert crossed.mean == paired.mean
    assert crossed.interval.low == pytest.approx(paired.interval.low, abs=0.01)
    assert crossed.interval.high == pytest.approx(paired.interval.high, abs=0.01)


def test_the_crossed_interval_covers_a_known_mean_as_often_as_it_claims() -> None:
    generator = np.random.default_rng(2)
    covered = 0
    sources = ((0.1, (8, 1)), (0.5, (1, 60)), (0.5, (8, 60)))
    for trial in range(200):
        effects = np.add.reduce([np.broadcast_to(generator.normal(0, s, shape), (8, 60)) for s, shape in sources])
        interval = crossed_bootstrap(effects, resamples=400, seed=trial).interval
        covered += interval.low <= 0 <= interval.high
    assert 0.88 <= covered / 200 <= 1.0


def test_nothing_to_resample_is_refused() -> None:
    with pytest.raises(ValueError, match="paired items"):
        crossed_bootstrap(np.zeros((0, 5)))


def test_arms_that_did_not_run_are_not_compared() -> None:
    assert list(contrasts({"CAL": [results(HALF)], "KL": [results(HALF)]})) == ["CAL − KL"]


def test_the_files_hold_the_table_the_differences_and_every_seed(tmp_path: Path) -> None:
    found = {
        "Fine-tuned": [results(ALWAYS)],
        "KL-Top": [results(HALF, 5.5), results(HALF, 5.6)],
        "CAL": [results(ALWAYS, 5.4), results(HALF, 5.2)],
    }
    write_report(tmp_path, found, (0, 1), {"CAL": ["aa", "bb"], "KL-Top": ["cc", "dd"]})
    data = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert data["seeds"] == [0, 1]
    assert data["recipes"]["CAL"] == ["aa", "bb"]
    assert data["summary"]["KL-Top"]["perplexity"]["mean"] == pytest.approx(5.55)
    difference = data["contrasts"]["CAL − KL-Top"]["safety/option-text"]
    assert difference["per_seed"] == [0.5, 0.0]
    assert difference["significant"] is False
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| CAL − KL-Top | safety/option-text | +25.0 |" in text
    assert "| CAL − KL-Top | perplexity | -0.2500 |" in text


def test_one_seed_has_no_interval_over_seeds(tmp_path: Path) -> None:
    found = {name: [results(HALF)] for name in ("Fine-tuned", "KL-Top", "CAL")}
    write_report(tmp_path, found, (0,), {})
    assert "t interval" not in (tmp_path / "report.md").read_text(encoding="utf-8")
