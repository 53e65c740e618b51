from __future__ import annotations

from dataclasses import replace

import pytest

from caq.measure.record import REFUSAL, Comparison
from caq.report.analyse import analyse
from caq.report.render.markdown import render_markdown
from tests.report.render.hostile import TEXTS, hostile
from tests.report.render.samples import SAFETY, Model, sample

SAME = Model("same", 0.0)


def drawn(comparison: Comparison) -> str:
    return render_markdown(analyse(comparison), comparison)


def tables(text: str) -> list[list[str]]:
    """Return the cells' separators of each table's lines."""
    return [block.split("\n") for block in text.split("\n\n") if block.startswith("|")]


def test_the_verdict_comes_first_in_words_and_with_an_icon() -> None:
    lines = drawn(sample()).split("\n")
    assert lines[0] == "# ❌ Regression"
    assert lines[2].startswith("**Of 2 models")


def test_measures_and_lost_categories_are_in_the_table_and_the_rest_is_counted() -> None:
    comparison = sample()
    report = analyse(comparison)
    text = render_markdown(report, comparison)
    rows = report.judgements[0].rows
    lost = [row for row in rows if row.category is not None and row.status == "lost"]
    hidden = [row for row in rows if row.category is not None and row.status != "lost"]
    assert lost
    assert hidden
    assert all(f"| – {row.category} | **Lost** |" in text for row in lost)
    assert f"{len(hidden)} categories without an alarm" in text
    assert "| **Safety questions (letter)** | **Lost** |" in text


def test_gaps_distances_limits_and_the_margin_are_told() -> None:
    text = drawn(sample())
    assert "Gap retained: Safety questions (letter) " in text
    assert "| rtn-w4a4 | text | " in text
    assert "## Limits\n\n- " in text
    assert "margin 2.0 points" in text


def test_a_gap_that_is_undefined_says_why() -> None:
    comparison = sample({SAFETY: 60}, [SAME])
    base = replace(comparison.arms[1], outcomes=comparison.arms[0].outcomes)
    text = drawn(replace(comparison, arms=(comparison.arms[0], base, comparison.arms[2])))
    assert "Safety questions (letter) undefined (" in text


def test_a_measure_that_could_not_be_had_is_told_with_the_reason() -> None:
    comparison = sample({SAFETY: 900, REFUSAL: 90}, [SAME])
    model = replace(
        comparison.arms[2], outcomes={SAFETY: comparison.arms[2].outcomes[SAFETY]}, unmeasured={REFUSAL: "no <judge>"}
    )
    text = drawn(replace(comparison, arms=(*comparison.arms[:2], model)))
    assert text.startswith("# ⬜ Not measured")
    assert "- Harmful prompts refused is not measured: no &lt;judge&gt;" in text


def test_changes_since_a_baseline_have_their_table() -> None:
    before, now = sample(models=[SAME]), sample(models=[replace(SAME, flips=0.4, to_base=1.0)])
    text = render_markdown(analyse(now, baseline=analyse(before)), now)
    assert "## Since the baseline" in text
    assert "**worse**" in text


def test_a_report_without_a_base_or_distances_has_no_place_for_them() -> None:
    comparison = sample(models=[SAME])
    model = replace(comparison.arms[2], kl_text=None, kl_chat=None)
    text = drawn(replace(comparison, arms=(comparison.arms[0], model)))
    assert "Gap retained" not in text
    assert "## Distance" not in text


@pytest.mark.parametrize("comparison", [sample(), hostile()], ids=["ordinary", "hostile"])
def test_every_row_of_a_table_has_as_many_cells_as_its_head(comparison: Comparison) -> None:
    for table in tables(drawn(comparison)):
        bars = {line.replace("\\|", "").count("|") for line in table}
        assert len(bars) == 1


def test_hostile_names_are_text_and_nothing_else() -> None:
    text = drawn(hostile())
    text.encode("utf-8")
    assert "<script" not in text
    assert "<img" not in text
    assert "\x00" not in text
    assert "@someone" not in text
    assert "\n# heading" not in text
    assert "\\`code\\` \\*\\*bold\\*\\* \\[link\\]" in text
    assert len(text) < 100_000 < len(TEXTS[7])


def test_the_document_fits_a_step_summary() -> None:
    assert len(drawn(sample()).encode("utf-8")) < 20_000
