"""The report: differences are paired, intervals cover seeds and items, and nothing is oversold."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from caq.measure.refusal import Response
from caq.measure.results import Answer, Results

from caq.items.safetybench import CATEGORIES
from caq.items.tasks import Tasks
from caq.reproduce.contrasts import between, contrast
from caq.reproduce.experiments import SAFETY, table1
from caq.reproduce.grid import Cell
from caq.reproduce.pairs import PairSource
from caq.reproduce.paper import compare
from caq.reproduce.report import Outcome, summarise, write_report
from caq.statistics.resampling import crossed_bootstrap, paired_bootstrap


def results(right: list[bool], perplexity: float = 5.0) -> Results:
    """One model's results: safety answers as given, every harmful prompt refused, no harmless one."""
    safety = tuple(Answer(str(i), "Ethics", 0, 0 if good else 1) for i, good in enumerate(right))
    responses = tuple(Response(f"p{i}", i < 2, "Sure.", i < 2) for i in range(4))
    return Results(256, perplexity, None, {"option-text": safety}, (), responses)


PAIR = PairSource("Llama-3.1-8B", "ft", "pt", Tasks(), {}, {}, "LLaMA3.1-8B")
ALWAYS = [True] * 40
HALF = [True, False] * 20


def test_a_difference_that_holds_for_every_item_and_seed_is_evidence() -> None:
    found = contrast([results(ALWAYS)] * 3, [results(HALF)] * 3)["safety/option-text"]
    assert found.difference.mean == 0.5
    assert found.per_seed == (0.5, 0.5, 0.5)
    assert found.items == 40
    assert found.significant


def test_questions_and_requests_are_also_compared_as_one_rate() -> None:
    ours = replace(results(HALF), responses=tuple(Response(f"p{i}", i < 2, "Sure.", True) for i in range(4)))
    found = contrast([ours], [results(ALWAYS)])
    assert next(iter(found)) == "aligned"
    assert found["aligned"].items == 44
    assert found["aligned"].difference.mean == pytest.approx(-(20 + 2) / 44)
    assert "aligned" not in contrast([replace(ours, responses=())], [results(ALWAYS)])


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


def outcome(runs: dict[str, list[Results | None]], pair: PairSource = PAIR) -> Outcome:
    found = [
        Cell(arm, seed, f"{arm}-{seed}", one, None if one else "learning diverged")
        for arm, results in runs.items()
        for seed, one in enumerate(results)
    ]
    experiment = table1(pair)
    return Outcome(experiment, pair, "default", "caq reproduce table1", (0, 1), found)


def test_arms_that_did_not_run_are_not_compared() -> None:
    runs = {"CAL": {0: results(HALF)}, "KL": {0: results(HALF)}, "MSE": {1: results(HALF)}}
    pairs = (("CAL", "KL"), ("CAL", "MSE"), ("CAL", "GPTQ"))
    assert list(between(runs, pairs)) == ["CAL − KL"]


def test_the_files_hold_the_table_the_differences_and_every_seed(tmp_path: Path) -> None:
    found = outcome(
        {
            "Fine-tuned": [results(ALWAYS)],
            "KL-Top": [results(HALF, 5.5), results(HALF, 5.6)],
            "CAL": [results(ALWAYS, 5.4), results(HALF, 5.2)],
        }
    )
    write_report(found, summarise(found), tmp_path)
    data = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert data["seeds"] == [0, 1]
    assert data["recipes"]["CAL"] == ["CAL-0", "CAL-1"]
    assert data["summary"]["KL-Top"]["perplexity"]["mean"] == pytest.approx(5.55)
    difference = data["contrasts"]["CAL − KL-Top"]["safety/option-text"]
    assert difference["per_seed"] == [0.5, 0.0]
    assert difference["significant"] is False
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| CAL − KL-Top | safety/option-text | +25.0 |" in text
    assert "| CAL − KL-Top | perplexity | -0.2500 |" in text


def test_one_seed_has_no_interval_over_seeds(tmp_path: Path) -> None:
    found = outcome({name: [results(HALF)] for name in ("Fine-tuned", "KL-Top", "CAL")})
    write_report(found, summarise(found), tmp_path)
    assert "t interval" not in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_a_diverged_seed_is_named_and_the_others_are_still_compared(tmp_path: Path) -> None:
    found = outcome(
        {
            "Fine-tuned": [results(ALWAYS)],
            "KL-Top": [results(HALF), results(HALF)],
            "CAL": [None, results(ALWAYS)],
            "KL": [None, None],
        }
    )
    summary = summarise(found)
    assert summary.between["CAL − KL-Top"]["safety/option-text"].per_seed == (0.5,)
    assert "CAL − KL" not in summary.between
    write_report(found, summary, tmp_path)
    assert "- CAL, seed 0: learning diverged" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_the_papers_figures_stand_beside_ours_and_say_where_they_do_not_compare(tmp_path: Path) -> None:
    found = outcome({"Fine-tuned": [results(ALWAYS, 7.5)], "Pre-trained": [results(HALF, 6.2)], "CAL": [None]})
    paper = summarise(found).paper
    assert paper["Fine-tuned"]["perplexity"].difference == pytest.approx(7.5 - 7.23)
    assert paper["Fine-tuned"]["safety/option-text"].difference == pytest.approx(100 - 62.6)
    base = paper["Pre-trained"]["perplexity"]
    assert (base.printed, base.ours, base.difference) == (6.14, 6.2, None)
    assert "Meta-Llama-3-8B" in base.note
    assert paper["CAL"]["perplexity"].ours is None
    write_report(found, summarise(found), tmp_path)
    assert "| Fine-tuned | 7.23 | 7.50 | +0.27 |" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_every_printed_average_of_the_categories_is_the_weighted_mean_or_is_noted() -> None:
    """SafetyBench's counts: the three rows where the printed average is another have a note."""
    counts = dict(zip(CATEGORIES, (1805, 1904, 1149, 1566, 1778, 1934, 1299), strict=True))
    for model in ("LLaMA3.1-8B", "LLaMA2-7B", "Qwen2-7B", "Mistral-7B-v0.1"):
        for row in compare("tableS1", model, {}, {}, "").values():
            total = sum(row[f"{SAFETY}/{name}"].printed * count for name, count in counts.items()) / 11435
            assert (abs(total - row[SAFETY].printed) > 0.06) == bool(row[SAFETY].note)
