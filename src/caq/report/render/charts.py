"""Charts as inline SVG: drawn by matplotlib, coloured by the page's CSS variables, so that dark mode reaches them.

plotly was left out: the only bundle in its wheel is 4.8 MB, the whole page's budget. A chart is drawn at the width of a
phone and never shown much wider, so that its letters are as large as the page's.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from caq.measure.record import Distances
from caq.report.render.words import heading, name, number, percent, printable
from caq.report.types import Letters, Row
from caq.report.wording import signed

WIDTH = 360.0
# Room for half of the last tick's label.
RIGHT = 20.0
_FONT = 10.5
# Matplotlib knows no variables: a colour stands for each, and is replaced in the finished drawing.
_COLOUR = {
    name: f"#{0x010101 * place:06x}"
    for place, name in enumerate("ink muted grid paper model aligned base lost kept undecided".split(), start=1)
}
_VARIABLES = {colour: f"--{name}" for name, colour in _COLOUR.items()}
_SETTINGS = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": _FONT,
    "text.color": _COLOUR["ink"],
    "axes.edgecolor": _COLOUR["grid"],
    "xtick.color": _COLOUR["grid"],
    "ytick.color": _COLOUR["grid"],
    "xtick.labelcolor": _COLOUR["muted"],
    "ytick.labelcolor": _COLOUR["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def differences(model: str, rows: Sequence[Row], margin: float) -> Markup:
    """Return each row's difference and its score interval, beside no difference and the margin."""

    def draw(axes: Axes) -> None:
        axes.axvspan(-100 * margin, 0, color=_COLOUR["grid"], alpha=0.45, linewidth=0)
        axes.axvline(0, color=_COLOUR["muted"], linewidth=1)
        axes.axvline(-100 * margin, color=_COLOUR["lost"], linewidth=1, linestyle=(0, (4, 3)))
        for place, row in enumerate(rows):
            ends = [100 * row.score.low, 100 * row.score.high]
            colour = _COLOUR[row.status]
            axes.plot(ends, [place, place], color=colour, linewidth=2.2, solid_capstyle="round")
            axes.plot(100 * row.difference, place, "o", color=colour, markersize=6)
        axes.margins(x=0.06)
        _labels(axes, [heading(row.measure) for row in rows])
        axes.set_xlabel("points, model − aligned", color=_COLOUR["muted"])

    summary = "; ".join(f"{heading(row.measure)} {signed(row.difference)} points, {row.status}" for row in rows)
    return _svg(draw, _rows_height(len(rows)), f"{name(model)}, differences to the aligned model: {summary}")


def category_bars(model: str, rows: Sequence[Row]) -> Markup:
    """Return the model's rate in each category with its interval, and lines where aligned and base stand."""

    def draw(axes: Axes) -> None:
        for place, row in enumerate(rows):
            low, value, high = (100 * x for x in (row.model.interval.low, row.model.value, row.model.interval.high))
            colour = _COLOUR["lost"] if row.status == "lost" else _COLOUR["model"]
            axes.barh(place, value, height=0.5, color=colour, alpha=0.5, linewidth=0)
            axes.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="round")
            upright = [place - 0.3, place + 0.3]
            axes.plot([100 * row.aligned.value] * 2, upright, color=_COLOUR["aligned"], linewidth=2.4)
            if row.base is not None:
                dots = (0, (1, 0.8))
                axes.plot([100 * row.base.value] * 2, upright, color=_COLOUR["base"], linewidth=2.4, linestyle=dots)
        axes.set_xlim(0, 100)
        _labels(axes, [f"{name(row.category or '')}{' — lost' if row.status == 'lost' else ''}" for row in rows])
        axes.set_xticks(range(0, 101, 25), [f"{value} %" for value in range(0, 101, 25)])
        axes.xaxis.grid(visible=True, color=_COLOUR["grid"], linewidth=0.8)
        axes.set_axisbelow(True)

    summary = "; ".join(f"{name(row.category or '')} {percent(row.model.value)}" for row in rows)
    label = f"{name(model)}, {heading(rows[0].measure)} by category: {summary}"
    return _svg(draw, _rows_height(len(rows)) - 16, label, bottom=22)


def kl_histogram(label: str, aligned: Distances, base: Distances | None) -> Markup:
    """Return how KL to the aligned model is spread over positions, filled, and that to the base as a line."""

    def draw(axes: Axes) -> None:
        for distances, colour, filled in ((base, _COLOUR["base"], False), (aligned, _COLOUR["model"], True)):
            if distances is None:
                continue
            shares = 100 * np.asarray(distances.histogram.counts) / max(1, distances.positions)
            # Bins are drawn equally wide, whatever their edges: those span many powers of ten and may begin with 0.
            axes.stairs(shares, np.arange(len(shares) + 1), fill=filled, color=colour, alpha=0.55 if filled else 1,
                        linewidth=0 if filled else 1.8)  # fmt: skip
        edges = aligned.histogram.edges
        ticks = np.unique(np.linspace(0, len(edges) - 1, 5).round().astype(int))
        axes.set_xticks(ticks, [_edge(edges[tick]) for tick in ticks])
        axes.set_xlim(0, len(edges) - 1)
        axes.set_xlabel("KL, nats", color=_COLOUR["muted"])
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")

    summary = f"mean {number(aligned.mean)}, median {number(aligned.median)}, largest {number(aligned.maximum)} nats"
    return _svg(draw, 170, f"{label}, KL to the aligned model: {summary}", left=42)


def letter_bars(label: str, letters: Letters, items: int) -> Markup:
    """Return how often each letter was chosen, beside the share that always choosing it gets right."""
    names = sorted({*letters.right, *letters.chosen})

    def draw(axes: Axes) -> None:
        for place, letter in enumerate(names):
            axes.bar(place, 100 * letters.chosen.get(letter, 0) / items, width=0.56, color=_COLOUR["model"], alpha=0.5)
            right = 100 * letters.right.get(letter, 0) / items
            axes.plot([place - 0.38, place + 0.38], [right] * 2, color=_COLOUR["aligned"], linewidth=2.4)
        axes.set_xticks(range(len(names)), names)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")

    summary = "; ".join(f"{letter} {percent(letters.chosen.get(letter, 0) / items)}" for letter in names)
    return _svg(draw, 150, f"{label}, letters chosen: {summary}", left=42, bottom=22, width=250)


def _rows_height(rows: int) -> float:
    return 36 * rows + 48


def _labels(axes: Axes, texts: Sequence[str]) -> None:
    """Write each row's name above its mark, where a phone has room for it."""
    axes.set_ylim(len(texts) - 0.5, -0.62)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    for place, text in enumerate(texts):
        shown = text if len(text) <= 52 else text[:51] + "…"
        axes.text(0, place - 0.36, shown, transform=axes.get_yaxis_transform(), va="bottom")


def _edge(value: float) -> str:
    return f"{value:.0e}".replace("e-0", "e−") if 0 < value < 0.01 else f"{value:.2g}"


def _svg(
    draw: Callable[[Axes], None], height: float, label: str, left: float = 14, bottom: float = 38, width: float = WIDTH
) -> Markup:
    """Return a drawing of `width` by `height` units with its label for those who cannot see it."""
    drawn = io.StringIO()
    # The salt makes identifiers a function of the chart: the same report gives the same bytes.
    with warnings.catch_warnings(), rc_context(cast(Any, {**_SETTINGS, "svg.hashsalt": label})):
        # Letters are set by the browser; which of them matplotlib's own font lacks does not matter.
        warnings.filterwarnings("ignore", message="Glyph")
        figure = Figure(figsize=(width / 72, height / 72))
        frame = (left / width, bottom / height, (width - left - RIGHT) / width, (height - bottom - 8) / height)
        draw(figure.add_axes(frame))
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    return _inline(drawn.getvalue(), label, f"{width:g} {height:g}")


def _inline(drawing: str, label: str, size: str) -> Markup:
    """Return matplotlib's file as an element of a page: no prologue, style, fonts or names of its own."""
    body = drawing[drawing.index("<g id=") : drawing.rindex("</svg>")]
    used = set(re.findall(r"#(\w+)", body))
    # Tags only: a category may be called what would be replaced.
    body = re.sub(r"<[^>]*>", lambda tag: _tag(tag[0], used), body)
    described = escape(printable(label))
    return Markup(f'<svg class="chart" role="img" aria-label="{described}" viewBox="0 0 {size}">{body}</svg>')


def _tag(tag: str, used: set[str]) -> str:
    tag = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", tag)
    tag = re.sub(r"font-family: [^;\"]*;?", "", tag)
    tag = re.sub("#0[0-9a]0[0-9a]0[0-9a]", lambda match: f"var({_VARIABLES[match[0]]})", tag)
    return re.sub(r"\s+", " ", tag)
