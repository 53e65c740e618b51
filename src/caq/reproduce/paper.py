"""The paper's printed figures, and what is known to be wrong or not to compare about them."""

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
    return {
        arm: {
            measure: PrintedFigure(
                printed, _figure(ours.get(arm, {}), measure, names), note or _note(model, arm, measure)
            )
            for measure, printed in printed_row.items()
        }
        for arm, printed_row in table.items()
    }


def floor() -> str:
    """Return the sentence on what a collapsed model scores."""
    text: str = _paper()["floor"]
    return text


def _figure(ours: Mapping[str, float], measure: str, names: Mapping[str, str]) -> float | None:
    value = ours.get(names.get(measure, measure))
    return value if value is None or measure in PLAIN else 100 * value


def _note(model: str, arm: str, measure: str) -> str:
    fields = {"model": model, "arm": arm, "measure": measure}
    notes = [entry["note"] for entry in _paper()["notes"] if {**entry, **fields} == entry]
    return "; ".join(notes)


@cache
def _paper() -> dict[str, Any]:
    text = resources.files("caq.reproduce").joinpath("paper.json").read_text(encoding="utf-8")
    printed: dict[str, Any] = json.loads(text)
    return printed
