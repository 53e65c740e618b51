"""What a comparison writes: `results.json`, and `report.md` with the table, paired differences and intervals."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from caq.evaluate.results import Results
from caq.evaluate.statistics import across_seeds, mcnemar, paired_bootstrap
from caq.evaluate.suite import Paired, compare
from caq.evaluate.table import markdown, markdown_categories, markdown_differences

FINE_TUNED = "Fine-tuned"
CONTRASTS = (("CAL", "KL-Top"), ("CAL", "KL"), ("CAL", "Hadamard"))


def write_report(directory: Path, found: Mapping[str, Sequence[Results]], seeds: Sequence[int]) -> None:
    """Write both files into `directory`."""
    data = {
        "caq": version("caq"),
        "seeds": list(seeds),
        "summary": {name: _spreads(runs) for name, runs in found.items()},
        "against_fine_tuned": {name: _plain(pairs) for name, pairs in _against_fine_tuned(found).items()},
        "contrasts": {name: _plain(pairs) for name, pairs in contrasts(found).items()},
    }
    (directory / "results.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    (directory / "report.md").write_text(_document(found, seeds), encoding="utf-8")


def contrasts(found: Mapping[str, Sequence[Results]]) -> dict[str, dict[str, Paired]]:
    """Return the differences between arms, paired per item and pooled over the seeds."""
    return {
        f"{ours} − {theirs}": pooled(found[ours], found[theirs])
        for ours, theirs in CONTRASTS
        if ours in found and theirs in found
    }


def pooled(ours: Sequence[Results], theirs: Sequence[Results]) -> dict[str, Paired]:
    """Compare two arms seed by seed on the same items.

    The interval resamples items and takes an item's mean over the seeds as its outcome: the same items answered under
    several seeds are not independent, and counting them as such would make the interval too short. McNemar is over all
    item-seed pairs and is a description, not the decision.
    """
    per_seed = [(a.outcomes(), b.outcomes()) for a, b in zip(ours, theirs, strict=True)]
    names = [name for name in per_seed[0][0] if name in per_seed[0][1]]
    return {name: _pooled_measure([(a[name], b[name]) for a, b in per_seed]) for name in names}


def _pooled_measure(seeds: Sequence[tuple[Sequence[bool], Sequence[bool]]]) -> Paired:
    ours = [sum(column) / len(seeds) for column in zip(*(a for a, _ in seeds), strict=True)]
    theirs = [sum(column) / len(seeds) for column in zip(*(b for _, b in seeds), strict=True)]
    gained = sum(x and not y for a, b in seeds for x, y in zip(a, b, strict=True))
    lost = sum(y and not x for a, b in seeds for x, y in zip(a, b, strict=True))
    return Paired(paired_bootstrap(ours, theirs), gained, lost, mcnemar(gained, lost), len(ours))


def _against_fine_tuned(found: Mapping[str, Sequence[Results]]) -> dict[str, dict[str, Paired]]:
    reference = found[FINE_TUNED][0]
    return {
        name: compare(runs[0], reference) if len(runs) == 1 else pooled(runs, [reference] * len(runs))
        for name, runs in found.items()
        if name != FINE_TUNED
    }


def _spreads(runs: Sequence[Results]) -> dict[str, object]:
    summaries = [run.summary() for run in runs]
    return {name: asdict(across_seeds([one[name] for one in summaries])) for name in summaries[0]}


def _plain(pairs: Mapping[str, Paired]) -> dict[str, object]:
    return {name: asdict(paired) for name, paired in pairs.items()}


def _document(found: Mapping[str, Sequence[Results]], seeds: Sequence[int]) -> str:
    many = len(seeds) > 1
    return "\n".join(
        [
            "# The bundled pair at W4A4",
            "",
            f"CAQ {version('caq')}, seeds {', '.join(map(str, seeds))}"
            + ("; mean ± standard deviation." if many else "."),
            "",
            markdown(found),
            "## Against the fine-tuned model, per item",
            "",
            markdown_differences(_against_fine_tuned(found)),
            "## Between objectives, per item" + (", an item's outcome averaged over the seeds" if many else ""),
            "",
            markdown_differences(contrasts(found)),
            "An interval that contains 0 is no evidence of a difference.",
            "",
            "## Safety by category, %",
            "",
            markdown_categories(found),
        ]
    )
