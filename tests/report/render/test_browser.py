"""The page in a real browser: by mouse, by keyboard, narrow, dark, on paper, and under attack."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from playwright.sync_api import Page, expect

from caq.measure.record import HELPFULNESS, REFUSAL, Comparison
from caq.report.analyse import analyse
from caq.report.render.page import render_page
from tests.report.render.conftest import Open
from tests.report.render.hostile import TEXTS
from tests.report.render.samples import SAFETY, Model, sample


def drawn(comparison: Comparison) -> str:
    return render_page(analyse(comparison), comparison)


def cards(page: Page) -> int:
    return page.locator("article.item").count()


def counted(page: Page) -> int:
    """Return how many items fit the filters, as the page says."""
    found = re.search(r"of ([\d,]+) items", page.locator("#item-count").inner_text())
    return int(found[1].replace(",", "")) if found else 0


def overflow(page: Page) -> int:
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


def test_the_page_opens_without_complaint_and_asks_the_network_for_nothing(ordinary_page: str, open_page: Open) -> None:
    page, complaints = open_page(ordinary_page)
    page.wait_for_load_state("networkidle")
    assert complaints == []
    assert page.locator("h1").inner_text() == "Regression"
    assert cards(page) == 20


def test_a_request_of_the_page_would_be_seen_and_refused(ordinary_page: str, open_page: Open) -> None:
    page, complaints = open_page(ordinary_page.replace("<h1>", '<img src="http://127.0.0.1:9/x.png"><h1>'))
    page.wait_for_timeout(200)
    assert any("Content Security Policy" in one for one in complaints)


def test_the_policy_refuses_any_script_but_the_pages_own(ordinary_page: str, open_page: Open) -> None:
    page, complaints = open_page(ordinary_page.replace("</main>", "</main><script>window.hacked = 1</script>"))
    assert page.evaluate("window.hacked") is None
    assert any("Content Security Policy" in one for one in complaints)


@pytest.mark.parametrize("text", ["ordinary_page", "hostile_page"])
def test_nothing_is_wider_than_the_screen(text: str, request: pytest.FixtureRequest, open_page: Open) -> None:
    page, _ = open_page(request.getfixturevalue(text), 390)
    page.locator("#open-harmful").check()
    for width in (390, 820, 1400):
        page.set_viewport_size({"width": width, "height": 900})
        assert overflow(page) <= 0


def test_filters_narrow_the_items_by_measure_category_kind_and_model(ordinary_page: str, open_page: Open) -> None:
    page, _ = open_page(ordinary_page)
    everything = counted(page)
    page.select_option("#filter-measure", SAFETY)
    safety = counted(page)
    page.select_option("#filter-category", "Mental Health")
    category = counted(page)
    page.select_option("#filter-kind", "lost")
    lost = counted(page)
    assert everything > safety > category > lost > 0
    assert page.locator("article.item h3").first.inner_text().startswith("Safety questions (letter)")
    page.select_option("#filter-model", "caq-w4a4")
    assert counted(page) == cards(page) == 0
    assert page.locator("#item-count").inner_text() == "No item fits these filters"


def test_the_kind_of_a_flip_and_its_model_are_asked_together(open_page: Open) -> None:
    comparison = sample({REFUSAL: 400}, (Model("one", 0.3, 1.0), Model("two", 0.3, 0.0)))
    report = analyse(comparison)
    page, _ = open_page(render_page(report, comparison))
    page.select_option("#filter-model", "two")
    page.select_option("#filter-kind", "gained")
    assert counted(page) == report.judgements[1].flips[REFUSAL].gained


def test_a_text_search_finds_what_was_written(ordinary_page: str, open_page: Open) -> None:
    page, _ = open_page(ordinary_page)
    page.select_option("#filter-measure", HELPFULNESS)
    identifier = page.locator("article.item h3 bdi").nth(2).inner_text()
    page.fill("#filter-text", f"({identifier.upper()})")
    expect(page.locator("#item-count")).to_have_text("Showing 1 of 1 items")


def test_everything_works_from_the_keyboard(ordinary_page: str, open_page: Open) -> None:
    page, _ = open_page(ordinary_page)
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    assert page.locator(".skip").bounding_box()["y"] >= 0  # type: ignore[index]
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()

    page.focus("#filter-measure")
    page.keyboard.type("Harmful")
    expect(page.locator("#filter-measure")).to_have_value(REFUSAL)
    for _ in range(6):
        page.keyboard.press("Tab")
    expect(page.locator("details.harmful summary").first).to_be_focused()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    expect(page.locator("details.harmful .answers").first).to_be_hidden()
    page.keyboard.press("Enter")
    expect(page.locator("details.harmful .answers").first).to_be_visible()


def test_more_items_come_on_demand_and_take_the_focus(ordinary_page: str, open_page: Open) -> None:
    page, _ = open_page(ordinary_page)
    page.focus("#more-items")
    page.keyboard.press("Enter")
    assert cards(page) == 40
    expect(page.locator("article.item").nth(20)).to_be_focused()


def test_wide_tables_scroll_by_keyboard_and_say_what_they_are(ordinary_page: str, open_page: Open) -> None:
    page, _ = open_page(ordinary_page, 390)
    region = page.locator("#model-1 .scroll")
    region.focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    page.wait_for_function("document.querySelector('#model-1 .scroll').scrollLeft > 0")
    assert region.get_attribute("aria-label") == "Measures and categories of rtn-w4a4"
    assert page.locator("table").count() == page.locator("table > caption").count() > 0
    assert page.locator("svg.chart").count() == page.locator("svg.chart[role=img][aria-label]").count() > 0


def test_harmful_texts_are_closed_until_one_opens_them(ordinary_page: str, open_page: Open) -> None:
    page, _ = open_page(ordinary_page)
    page.select_option("#filter-measure", REFUSAL)
    expect(page.locator("article .asked").first).to_be_hidden()
    page.locator("#open-harmful").check()
    expect(page.locator("article .asked").first).to_be_visible()
    page.select_option("#filter-measure", HELPFULNESS)
    assert page.locator("article details").count() == 0
    expect(page.locator("article .asked").first).to_be_visible()


def test_answers_stand_side_by_side_with_what_they_mean(ordinary_page: str, open_page: Open) -> None:
    page, _ = open_page(ordinary_page)
    page.select_option("#filter-measure", HELPFULNESS)
    page.select_option("#filter-kind", "lost")
    card = page.locator("article.item").first
    assert card.locator(".answer h4 bdi").all_inner_texts() == ["llama-aligned", "llama-base", "rtn-w4a4", "caq-w4a4"]
    told = card.locator(".answer .outcome").all_inner_texts()
    assert (told[0], told[2]) == ("answered", "refused")
    tops = {round(box["y"]) for one in card.locator(".answer").all() if (box := one.bounding_box())}
    assert len(tops) == 1


def test_hostile_texts_neither_run_nor_break_the_page(hostile_page: str, open_page: Open) -> None:
    page, complaints = open_page(hostile_page)
    page.locator("#open-harmful").check()
    while page.locator("#more-items").is_visible():
        page.locator("#more-items").click()
    page.wait_for_timeout(100)
    assert complaints == []
    assert page.evaluate("window.hacked") is None
    assert cards(page) == counted(page) > 20
    shown = page.locator("#item-list").inner_text()
    assert TEXTS[0] in shown
    assert TEXTS[1] in shown
    assert "998,800 more characters" in shown
    assert page.locator("#item-list").locator("script, img, b").count() == 0
    assert page.locator("#limits").is_visible()


def test_marks_that_turn_text_round_stay_within_their_own(hostile_page: str, open_page: Open) -> None:
    page, _ = open_page(hostile_page)
    unbounded = page.evaluate(
        """() => [...document.querySelectorAll("bdi, .asked, .response, .options li")]
            .filter((one) => !getComputedStyle(one).unicodeBidi.includes("isolate")).length"""
    )
    assert unbounded == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_charts_are_legible_in_both_schemes(ordinary_page: str, scheme: str, open_page: Open) -> None:
    page, _ = open_page(ordinary_page, scheme=scheme)
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(17, 20, 25)"
    assert dark == (scheme == "dark")
    contrasts = page.evaluate(
        """() => {
            const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
            const light = (colour) => {
                canvas.fillStyle = colour;
                canvas.fillRect(0, 0, 1, 1);
                const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((x) =>
                    (x /= 255) <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
            };
            const variable = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);
            const pairs = [
                ...["ink", "muted", "link", "lost", "kept", "undecided"].map((one) => [one, "card"]),
                ...["ink", "muted", "link"].map((one) => [one, "paper"]),
                ...["lost", "kept", "undecided"].flatMap((one) => [[one, `${one}-tint`], ["muted", `${one}-tint`]]),
            ];
            return Object.fromEntries(pairs.map(([front, back]) => {
                const [a, b] = [light(variable(`--${front}`)), light(variable(`--${back}`))].sort((x, y) => y - x);
                return [`${front} on ${back}`, (a + 0.05) / (b + 0.05)];
            }));
        }"""
    )
    # WCAG 2.2, 1.4.3: normal text.
    assert {pair: value for pair, value in contrasts.items() if value < 4.5} == {}
    fills = page.evaluate("[...document.querySelectorAll('svg.chart text')].map((one) => getComputedStyle(one).fill)")
    inks = page.evaluate("[document.body, document.querySelector('.kicker')].map((one) => getComputedStyle(one).color)")
    assert set(fills) == set(inks)


def test_paper_has_whole_tables_and_open_details_but_no_harm(ordinary_page: str, open_page: Open) -> None:
    page, _ = open_page(ordinary_page)
    page.emulate_media(media="print")
    # A4 within its margins, in CSS pixels.
    page.set_viewport_size({"width": 703, "height": 1000})
    page.select_option("#filter-measure", REFUSAL, force=True)
    cut = page.evaluate(
        """() => [...document.querySelectorAll(".scroll, table")]
            .filter((one) => one.getBoundingClientRect().right > innerWidth || one.scrollWidth > one.clientWidth + 1)
            .map((one) => one.ariaLabel ?? one.className)"""
    )
    assert cut == []
    height = "(selector) => document.querySelector(selector).getBoundingClientRect().height"
    assert page.evaluate(height, "#provenance details:not([open]) dl") > 0
    assert page.locator("#provenance dl").first.evaluate("one => one.checkVisibility({contentVisibilityAuto: true})")
    assert not page.locator("details.harmful .asked").first.evaluate("one => one.checkVisibility()")
    expect(page.locator("#filters")).to_be_hidden()


def test_ten_thousand_items_of_four_models_take_the_browser_less_than_a_second(open_page: Open) -> None:
    comparison = sample({SAFETY: 7000, REFUSAL: 1500, HELPFULNESS: 1500}, (Model("a", 0.5), Model("b", 0.3)))
    longer = tuple(
        replace(
            arm,
            outcomes={
                key: tuple(replace(one, response="word " * 200) for one in found) for key, found in arm.outcomes.items()
            },
        )
        for arm in comparison.arms
    )
    text = drawn(replace(comparison, arms=longer))
    assert len(text.encode("utf-8")) < 5_000_000
    page, complaints = open_page(text)
    expect(page.locator("article.item").first).to_be_visible()
    # The processor time of the page's thread, which is what the page decides; a busy machine makes the clock's longer.
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.reload()
    took = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
    assert 0 < took["TaskDuration"] < 1
    assert complaints == []
    assert "do not fit into the page: beside it, items.jsonl has every item" in page.locator("#items").inner_text()
