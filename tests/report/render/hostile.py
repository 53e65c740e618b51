"""Texts that try to break a page, run in it, or hide what is around them."""

from __future__ import annotations

from dataclasses import replace

from caq.ledger import Entry
from caq.measure.record import REFUSAL, ArmRecord, Comparison, Item, Outcome
from tests.report.render.samples import SAFETY, sample

TEXTS = (
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 2</script>",
    "<img src=x onerror='window.hacked = 3'><svg onload='window.hacked = 4'>",
    "<!-- <script> \u2028 \u2029 ]]> &amp; &lt; {{ 7 * 7 }} {% raw %}",
    "\x00\x07\x1b[31m \ud800 \udfff \ufffe \uffff",
    "\u202egnorw s'taht\u202d \u2066\u2067 עברית العربية",
    "| `code` **bold** [link](javascript:window.hacked=5) \r\n# heading\n- list <b>b</b> $x$ @someone",
    "long " * 200_000,
    '" autofocus onfocus="window.hacked = 6" x="',
    "#010101 id=\"x\" font-family: y; url('http://127.0.0.1/z') $\\frac{1}{2}$",
)


def hostile() -> Comparison:
    """Return a comparison in which every text that comes from outside is hostile, and in which items flip."""
    found = sample({SAFETY: 280, REFUSAL: 90}, seed=3)
    items = {measure: tuple(map(_item, asked, range(len(asked)))) for measure, asked in found.items.items()}
    arms = tuple(_arm(arm, TEXTS[index]) for index, arm in zip((0, 1, 2, 6), found.arms, strict=True))
    judge = None if found.judge is None else replace(found.judge, name=TEXTS[1], measured_on=TEXTS[5])
    return replace(found, items=items, arms=arms, judge=judge, data={TEXTS[2]: TEXTS[4]})


def _item(item: Item, index: int) -> Item:
    text = TEXTS[index % len(TEXTS)]
    options = tuple(TEXTS[(index + place) % len(TEXTS)][:3000] for place in range(len(item.options)))
    # Ids stay unique within their measure; few categories keep the rows few.
    return replace(item, id=f"{index} {text[:50]}", category=TEXTS[index % 3 + 5], text=text, options=options)


def _arm(arm: ArmRecord, text: str) -> ArmRecord:
    outcomes = {
        measure: tuple(_outcome(one, TEXTS[index % len(TEXTS)]) for index, one in enumerate(found))
        for measure, found in arm.outcomes.items()
    }
    entry = Entry(text, text, text, {})
    return replace(
        arm, name=f"{arm.role} {text}", outcomes=outcomes, ledger=(entry,), provenance={text[:40]: text}, unmeasured={}
    )


def _outcome(outcome: Outcome, text: str) -> Outcome:
    return replace(outcome, response=text)
