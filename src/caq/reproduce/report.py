"""What a table writes: `results.json`, and `report.md` with rows, the paper's figures, differences and intervals."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

from caq.files.whole import write_text
from caq.measure.results import Results
from caq.report.table import MISSING, markdown, markdown_categories, markdown_table
from caq.reproduce.contrasts import (
    Contrast,
    Contrasts,
    against_fine_tuned,
    amounts,
    between,
    spreads,
)
from caq.reproduce.experiments import SAFETY, Experiment
from caq.reproduce.grid import FULL_PRECISION, Cell
from caq.reproduce.pairs import PairSource
from caq.reproduce.paper import Comparison, compare, floor
from caq.statistics.resampling import Spread


@dataclass(frozen=True)
class Outcome:
    """A finished table.

    Attributes:
        experiment: what was run.
        pair: on what.
        preset: from which settings.
        command: what runs it again.
        seeds: under which seeds.
        cells: everything that was measured.
    """

    experiment: Experiment
    pair: PairSource
    preset: str
    command: str
    seeds: tuple[int, ...]
    cells: Sequence[Cell]

    @property
    def runs(self) -> dict[str, dict[int, Results]]:
        """Results by arm and seed; an arm whose learning always diverged has none."""
        found: dict[str, dict[int, Results]] = {cell.arm: {} for cell in self.cells}
        for cell in self.cells:
            if cell.results is not None:
                found[cell.arm][cell.seed] = cell.results
        return found


@dataclass(frozen=True)
class Summary:
    """What is drawn from a table, in every form."""

    spreads: Mapping[str, Mapping[str, Spread]]
    against_fine_tuned: Contrasts
    between: Contrasts
    amounts: Mapping[str, Mapping[str, Spread]]
    paper: Mapping[str, Mapping[str, Comparison]]
    diverged: Mapping[str, Mapping[int, str]] = field(default_factory=dict)


def summarise(outcome: Outcome) -> Summary:
    """Draw means, paired differences and the paper's figures from a table's cells."""
    runs, experiment = outcome.runs, outcome.experiment
    found = {arm: spreads(results) for arm, results in runs.items()}
    means = {arm: {name: spread.mean for name, spread in measures.items()} for arm, measures in found.items()}
    model, note = outcome.pair.paper, outcome.pair.note
    diverged: dict[str, dict[int, str]] = {}
    for cell in outcome.cells:
        if cell.diverged is not None:
            diverged.setdefault(cell.arm, {})[cell.seed] = cell.diverged
    return Summary(
        found,
        against_fine_tuned(runs),
        between(runs, experiment.contrasts),
        amounts(runs, experiment.contrasts),
        compare(experiment.name, model, means, outcome.pair.measures, note) if model else {},
        diverged,
    )


def write_report(outcome: Outcome, summary: Summary, directory: Path, plots: Sequence[str] = ()) -> None:
    """Write `results.json` and `report.md` into `directory`; `plots` are names of images beside them."""
    text = json.dumps(_data(outcome, summary), indent=1, ensure_ascii=False) + "\n"
    write_text(directory / "results.json", text)
    write_text(directory / "report.md", _document(outcome, summary, plots))


def _data(outcome: Outcome, summary: Summary) -> dict[str, object]:
    recipes: dict[str, list[str]] = {}
    for cell in outcome.cells:
        if cell.recipe:
            recipes.setdefault(cell.arm, []).append(cell.recipe)
    return {
        "caq": version("caq"),
        "experiment": outcome.experiment.name,
        "pair": outcome.pair.name,
        "preset": outcome.preset,
        "seeds": list(outcome.seeds),
        "recipes": recipes,
        "summary": {arm: {name: asdict(one) for name, one in of.items()} for arm, of in summary.spreads.items()},
        "diverged": summary.diverged,
        "against_fine_tuned": _plain(summary.against_fine_tuned),
        "contrasts": _plain(summary.between),
        "amounts": {arms: {name: asdict(one) for name, one in of.items()} for arms, of in summary.amounts.items()},
        "paper": {
            arm: {name: {**asdict(one), "difference": one.difference} for name, one in of.items()}
            for arm, of in summary.paper.items()
        },
    }


def _plain(contrasts: Contrasts) -> dict[str, object]:
    return {arms: {rate: one.as_dict() for rate, one in rates.items()} for arms, rates in contrasts.items()}


def _document(outcome: Outcome, summary: Summary, plots: Sequence[str]) -> str:
    rows = {arm: list(runs.values()) for arm, runs in outcome.runs.items() if runs}
    seeds = ", ".join(map(str, outcome.seeds))
    spread = "; mean ± standard deviation over the seeds" if len(outcome.seeds) > 1 else ""
    parts = [
        f"# {outcome.experiment.title}",
        f"`{outcome.command}`",
        f"CAQ {version('caq')}, pair {outcome.pair.name}, preset {outcome.preset}, seeds {seeds}{spread}. "
        "Every row is a saved directory, reloaded.",
        markdown(rows),
        *_diverged(summary),
        *(f"![{name}]({name})" for name in plots),
        *_beside_the_paper(outcome, summary),
        "## Between arms",
        _difference_table(summary.between),
        "Differences are paired by item; intervals are 95 % bootstrap intervals in which seeds and items are both "
        "resampled, not corrected for the number of rows. An interval that contains 0 is no evidence of a difference. "
        "`aligned` is all safety questions (by option text) and requests as one rate: the safe option, a refusal of "
        "harm, an answer to what does none.",
        *_amounts(summary),
        "## Against the fine-tuned model",
        _difference_table(summary.against_fine_tuned),
        "## Safety by category, %",
        markdown_categories(rows),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _diverged(summary: Summary) -> Iterator[str]:
    if summary.diverged:
        lines = (
            f"- {arm}, seed {seed}: {reason}"
            for arm, seeds in summary.diverged.items()
            for seed, reason in seeds.items()
        )
        yield "Learning diverged, and these have no numbers:\n\n" + "\n".join(lines)


def _beside_the_paper(outcome: Outcome, summary: Summary) -> Iterator[str]:
    if not summary.paper:
        return
    measures = list(dict.fromkeys(name for row in summary.paper.values() for name in row))
    titles = [name.removeprefix(f"{SAFETY}/") for name in measures]
    headings = [part for title in titles for part in (f"{title}: paper", "ours", "difference")]
    order = [*FULL_PRECISION, *outcome.experiment.arms]
    rows = [
        [arm, *(cell for name in measures for cell in _paper_cells(summary.paper[arm].get(name)))]
        for arm in order
        if arm in summary.paper
    ]
    yield f"## Beside the paper's {outcome.pair.paper}"
    yield markdown_table(["Arm", *headings], rows)
    notes = dict.fromkeys(
        outcome.pair.note or f"{arm}, {name}: {one.note}"
        for arm, row in summary.paper.items()
        for name, one in row.items()
        if one.note
    )
    yield "\n".join(f"- {note}" for note in (*notes, floor()))


def _paper_cells(one: Comparison | None) -> list[str]:
    if one is None:
        return [MISSING] * 3
    ours = MISSING if one.ours is None else f"{one.ours:.2f}"
    difference = "does not compare" if one.note else MISSING
    return [f"{one.printed:.2f}", ours, difference if one.difference is None else f"{one.difference:+.2f}"]


def _difference_table(contrasts: Contrasts) -> str:
    rows = [[arms, name, *_difference_cells(one)] for arms, rates in contrasts.items() for name, one in rates.items()]
    return markdown_table(["Arms", "Measure", "Difference (points)", "95 % interval", "Evidence", "Items"], rows)


def _difference_cells(one: Contrast) -> list[str]:
    low, high = one.difference.interval.low, one.difference.interval.high
    evidence = "yes" if one.significant else "no"
    return [f"{100 * one.difference.mean:+.1f}", f"[{100 * low:+.1f}, {100 * high:+.1f}]", evidence, str(one.items)]


def _amounts(summary: Summary) -> Iterator[str]:
    rows = [
        [arms, name, f"{one.mean:+.4f}", f"[{one.interval.low:+.4f}, {one.interval.high:+.4f}]"]
        for arms, measures in summary.amounts.items()
        for name, one in measures.items()
        if one.interval is not None
    ]
    if rows:
        yield "## Perplexity and distance to the fine-tuned model"
        yield markdown_table(["Arms", "Measure", "Difference", "95 % t interval over seeds"], rows)
