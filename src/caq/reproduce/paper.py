"""The paper's printed figures, and what is known to be wrong with them or not comparable."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from caq.report.experiment import PrintedFigure

#: Measures whose printed figures are no percentages.
PLAIN = ("perplexity", "logit_mse")


def printed_figures(
    experiment: str, model: str, ours: Mapping[str, Mapping[str, float]], names: Mapping[str, str], note: str
) -> dict[str, dict[str, PrintedFigure]]:
    """Return the paper's table with our figures in it, by arm and the paper's name of the measure.

    Args:
        experiment: a key of the printed tables.
        model: the paper's name of the model.
        ours: means by arm and by our name of the measure; rates in [0, 1].
        names: ours for the paper's, where they differ.
        note: why no figure of this pair compares; empty where they do.
    """
    table: Mapping[str, Mapping[str, float]] = _paper()["figures"].get(experiment, {}).get(model, {})

    def figure(arm: str, measure: str, printed: float) -> PrintedFigure:
        value = ours.get(arm, {}).get(names.get(measure, measure))
        scaled = value if value is None or measure in PLAIN else 100 * value
        return PrintedFigure(printed, scaled, note or _note(model, arm, measure))

    rows = table.items()
    return {arm: {measure: figure(arm, measure, printed) for measure, printed in row.items()} for arm, row in rows}


def floor() -> str:
    """Return the sentence on what a collapsed model scores."""
    text: str = _paper()["floor"]
    return text


def _note(model: str, arm: str, measure: str) -> str:
    fields = {"model": model, "arm": arm, "measure": measure}
    notes = [entry["note"] for entry in _paper()["notes"] if {**entry, **fields} == entry]
    return "; ".join(notes)


@cache
def _paper() -> dict[str, Any]:
    text = resources.files("caq.reproduce").joinpath("paper.json").read_text(encoding="utf-8")
    printed: dict[str, Any] = json.loads(text)
    return printed
