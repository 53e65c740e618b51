"""The page as text: what it tells, what it leaves out, and that nothing from outside is more than text."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from typing import Any

import pytest

from caq.ledger import Entry
from caq.measure.record import HELPFULNESS, REFUSAL, Comparison, Item, JudgeCard
from caq.report.analyse import analyse
from caq.report.document import from_json
from caq.report.render import RENDERERS
from caq.report.render import items as items_module
from caq.report.render.items import flipped_items
from caq.report.render.page import CHART_ROWS, LEDGER_ENTRIES, render_page
from tests.report.render.samples import SAFETY, Model, sample

SAME = Model("same", 0.0)
WORSE = Model("worse", 0.4, 1.0)


def drawn(comparison: Comparison) -> str:
    return render_page(analyse(comparison), comparison)


def words(page: str) -> str:
    """Return what a reader without scripts sees, on one line."""
    body = re.sub(r"<(script|style)\b.*?</\1>|<svg\b.*?</svg>", " ", page[page.index("<body>") :], flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", body)).split())


def data(page: str) -> Any:
    return json.loads(page.split('id="item-data">')[1].split("</script>")[0])


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.opened: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.opened.append(tag)


def test_each_format_has_a_file_and_draws_the_same_bytes_twice() -> None:
    assert {name: file for name, (file, _) in RENDERERS.items()} == {
        "json": "results.json",
        "html": "report.html",
        "md": "report.md",
        "junit": "junit.xml",
    }
    first, second = (sample({SAFETY: 90, REFUSAL: 60}, [WORSE]) for _ in range(2))
    for _, draw in RENDERERS.values():
        assert draw(analyse(first), first).encode("utf-8") == draw(analyse(second), second).encode("utf-8")


def test_the_json_is_the_report() -> None:
    comparison = sample({SAFETY: 60})
    report = analyse(comparison)
    assert from_json(RENDERERS["json"][1](report, comparison)) == report


def test_the_page_tells_every_point_of_the_report() -> None:
    comparison = sample()
    report = analyse(comparison)
    text = words(render_page(report, comparison))
    rtn = report.judgements[0]
    for told in (
        report.decision.sentence,
        rtn.verdict.sentence,
        *rtn.verdict.reasons,
        *report.limits,
        "Accepted loss 2.0 points",
        f"{rtn.flips[SAFETY].lost} lost",
        "Alignment gap retained",
        "landed on the base's answer",
        "same top token",
        "Who does not read the questions gets: by chance",
        "phrases (caq 0.1.0)",
        "Refusals it takes for answers 3.1 %",
        "damping-escalated",
        "/models/rtn-w4a4",
        report.items_sha256[SAFETY],
        "10,000 resamples, seed 0",
        "Incoherent responses",
    ):
        assert told in text, told


def test_every_row_stands_in_the_table_with_its_numbers() -> None:
    comparison = sample(models=[WORSE])
    report = analyse(comparison)
    text = words(render_page(report, comparison))
    for row in report.judgements[0].rows:
        assert f"{row.model.items:,} items" in text
        assert f"{100 * row.model.value:.1f} %" in text
        assert f"{100 * row.bootstrap.low:.1f}".replace("-", "−") in text
    assert text.count(" Lost ") >= sum(row.status == "lost" for row in report.judgements[0].rows)


def test_an_undefined_gap_says_so_and_why() -> None:
    comparison = sample({SAFETY: 60}, [SAME])
    base = replace(comparison.arms[1], outcomes=comparison.arms[0].outcomes)
    comparison = replace(comparison, arms=(comparison.arms[0], base, comparison.arms[2]))
    report = analyse(comparison)
    assert f"undefined {report.judgements[0].gap[SAFETY].reason}" in words(render_page(report, comparison))


def test_a_measure_that_could_not_be_had_is_told_with_the_reason() -> None:
    comparison = sample({SAFETY: 90, REFUSAL: 90}, [SAME])
    answers = {SAFETY: comparison.arms[2].outcomes[SAFETY]}
    model = replace(comparison.arms[2], outcomes=answers, unmeasured={REFUSAL: "the judge timed out"})
    text = words(drawn(replace(comparison, arms=(*comparison.arms[:2], model))))
    assert "Harmful prompts refused Not measured the judge timed out" in text


def test_a_model_that_changed_nothing_has_no_item_to_show() -> None:
    text = drawn(sample(models=[SAME]))
    assert "No item has another outcome than under the aligned model." in words(text)
    assert 'id="item-data"' not in text


def test_without_base_judge_and_distances_their_places_are_gone() -> None:
    comparison = sample({SAFETY: 200}, [WORSE])
    model = replace(comparison.arms[2], kl_text=None, kl_chat=None, kl_base_text=None, kl_base_chat=None)
    text = words(drawn(replace(comparison, arms=(comparison.arms[0], model), judge=None)))
    for absent in ("Alignment gap retained", "Drift to base", "Distances", "Who calls a response a refusal", "Base"):
        assert absent not in text


def test_a_judge_that_nobody_measured_says_so() -> None:
    text = words(drawn(replace(sample({REFUSAL: 40}, [SAME]), judge=JudgeCard("guard@1f2e"))))
    assert "How often people would disagree with this judge has not been measured." in text


def test_changes_since_a_baseline_have_a_table() -> None:
    before, now = sample(models=[SAME]), sample(models=[replace(WORSE, name="same")])
    text = words(render_page(analyse(now, baseline=analyse(before)), now))
    assert "Since the baseline" in text
    assert "Worse" in text


def test_the_policy_forbids_everything_but_what_is_in_the_page() -> None:
    page = drawn(sample({SAFETY: 60}))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    rules = dict(rule.split(" ", 1) for rule in policy[1].replace("&#39;", "'").split("; "))
    assert rules.pop("default-src") == "'none'"
    assert rules.pop("script-src").startswith("'sha256-")
    assert rules.pop("style-src-elem").startswith("'sha256-")
    assert rules == {
        "style-src-attr": "'unsafe-inline'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert not re.findall(r'(?:src|href)="(?!#|data:,")[^"]*"', page)


def test_hostile_texts_open_no_tag_and_the_page_is_utf_8(hostile_page: str) -> None:
    page = hostile_page
    page.encode("utf-8")
    tags = Tags()
    tags.feed(page)
    assert tags.opened.count("script") == 2
    assert "img" not in tags.opened
    assert "\x00" not in page
    assert len(page) < 1_000_000


def test_item_data_holds_no_character_that_ends_a_script_or_a_line(hostile_page: str) -> None:
    raw = hostile_page.split('id="item-data">')[1].split("</script>")[0]
    assert not set("<>&\u2028\u2029") & set(raw)
    assert any("<script>" in item["text"] for item in data(hostile_page)["items"])


def test_lost_items_come_first_and_measures_take_turns() -> None:
    found = data(drawn(sample(models=[WORSE])))["items"]
    kinds = [item["flips"]["worse"] for item in found]
    assert kinds == sorted(kinds, key=["lost", "gained", "moved"].index)
    assert {item["measure"] for item in found[:4]} == {SAFETY, REFUSAL, HELPFULNESS, "facts"}


def test_items_are_left_out_where_there_is_no_room_and_their_number_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = sample(models=[WORSE])
    report = analyse(comparison)
    everything = flipped_items(report, comparison)
    assert everything.shown == everything.total
    monkeypatch.setattr(items_module, "ITEMS_BYTES", 20_000)
    some = flipped_items(report, comparison)
    assert 0 < some.shown < some.total == everything.total
    assert sum(len(json.dumps(one, ensure_ascii=False)) for one in json.loads(some.data)["items"]) <= 22_000
    text = words(render_page(report, comparison))
    left = some.total - some.shown
    assert f"{some.shown} of them are here, the lost ones first; the other {left} do not fit into the page" in text


def test_harmful_prompts_and_quoted_insults_are_marked() -> None:
    found = data(drawn(sample(models=[WORSE])))["items"]
    harmful = {(item["measure"], item["category"] == "Offensiveness") for item in found if item["harmful"]}
    assert {measure for measure, offensive in harmful if not offensive} == {REFUSAL}
    assert (SAFETY, True) in harmful


def test_long_texts_names_categories_and_ledgers_are_bounded() -> None:
    comparison = sample({SAFETY: 300}, [WORSE])
    many = tuple(
        Item(one.id, f"category {place % 60}", "x" * 5000, one.options, one.answer)
        for place, one in enumerate(comparison.items[SAFETY])
    )
    entries = (Entry("quantize", "damping-escalated", "more damping", {}),) * (LEDGER_ENTRIES + 7)
    model = replace(comparison.arms[2], ledger=entries)
    page = drawn(replace(comparison, items={SAFETY: many}, arms=(*comparison.arms[:2], model)))
    assert "… 3,800 more characters" in page
    assert f"The {60 - CHART_ROWS} categories that fell least are in the table only." in page
    assert page.count("<code>quantize · damping-escalated</code>") == LEDGER_ENTRIES
    assert "… 7 more are in the report's JSON." in page


def test_charts_take_their_colours_from_the_page(ordinary_page: str) -> None:
    drawings = re.findall(r'<svg class="chart".*?</svg>', ordinary_page, flags=re.DOTALL)
    assert len(drawings) == 2 * (1 + 3 + 2) + 4
    for drawing in drawings:
        assert "var(--" in drawing
        assert not re.search(r"#[0-9a-f]{6}\b(?=[;\"])", drawing)
        assert "<style" not in drawing
        assert "DejaVu" not in drawing


def test_identifiers_in_the_page_are_unique(ordinary_page: str) -> None:
    found = re.findall(r' id="([^"]+)"', ordinary_page)
    assert len(found) == len(set(found))
