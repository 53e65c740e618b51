"""The bundled comparison: CAL and the baselines on the bundled pair, over seeds, paired per item.

`caq demo` runs it once, `caq results` over several seeds. Every arm is a recipe; everything measured is measured on
the saved directory, reloaded. Results are kept per arm and seed, so that a stopped run goes on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from caq.errors import CaqError
from caq.evaluate.distribution import ReferenceStates
from caq.evaluate.results import Results
from caq.evaluate.suite import evaluate, reference_answers
from caq.evaluate.table import rich_table
from caq.loading import load, load_tokenizer
from caq.pipeline import quantize
from caq.recipe import Recipe, preset
from caq.testbed.export import data_tasks, export

FIXED = {
    "transforms.residual": "none",
    "transforms.learn": False,
    "transforms.rotate_value_output": False,
    "transforms.online_down_hadamard": False,
}
#: The arms of arXiv:2511.07842, Table 1, and the hand-set transforms between them: overrides of the bundled recipe.
ARMS: Mapping[str, Mapping[str, object]] = {
    "RTN": {**FIXED, "quantizer.name": "rtn", "quantizer.clip_search": False},
    "GPTQ": FIXED,
    "Hadamard": {"transforms.residual": "hadamard", "transforms.learn": False},
    "MSE": {"objective.name": "mse"},
    "KL": {"objective.name": "kl"},
    "KL-Top": {"objective.name": "kl-top"},
    "CAL": {"objective.name": "cal"},
}
PRE_TRAINED, FINE_TUNED = "Pre-trained", "Fine-tuned"


@dataclass(frozen=True)
class Bench:
    """Where a comparison's inputs and outputs are.

    Attributes:
        directory: everything the comparison writes.
        seeds: one run of every arm for each.
    """

    directory: Path
    seeds: tuple[int, ...]

    @property
    def pair(self) -> Path:
        """The exported bundled pair."""
        return self.directory / "pair"

    def checkpoint(self, arm: str, seed: int) -> Path:
        """Return where an arm's checkpoint goes."""
        return self.directory / "checkpoints" / f"{arm.lower()}-seed{seed}"

    def record(self, arm: str, seed: int) -> Path:
        """Return where an arm's results go."""
        return self.directory / "items" / f"{arm.lower()}-seed{seed}.json"


def bundled_recipe(pair: Path) -> Recipe:
    """Return the recipe of the bundled pair: the default, with sizes for 2.5 million parameters."""
    return preset("default").with_overrides(
        {
            "data.text": str(pair / "calibration.txt"),
            "data.samples": 128,
            "data.length": 128,
            "training.steps": 60,
            "training.batch_size": 8,
            "training.micro_batch_size": 8,
            "training.validation_samples": 16,
            "training.gradient_checkpointing": False,
        }
    )


def run_bench(directory: Path, seeds: tuple[int, ...], *, quiet: bool = False) -> dict[str, list[Results]]:
    """Run every arm for every seed; print rows as they come, then the table; write `results.json` and `report.md`."""
    from caq.report import write_report

    bench = Bench(directory.resolve(), seeds)
    if not (bench.pair / "aligned" / "config.json").exists():
        export(bench.pair)
    console = Console()
    found: dict[str, list[Results]] = {}
    for name, results in _rows(bench, quiet):
        found.setdefault(name, []).append(results)
        _print_row(console, name, results)
    console.print(rich_table(found, title=f"Bundled pair, W4A4, {len(seeds)} seed{'s' if len(seeds) > 1 else ''}"))
    write_report(bench.directory, found, seeds)
    console.print(f"wrote {bench.directory / 'results.json'} and {bench.directory / 'report.md'}")
    return found


def _rows(bench: Bench, quiet: bool) -> Iterator[tuple[str, Results]]:
    aligned, reference = _reference(bench)
    yield PRE_TRAINED, _measured(bench, bench.pair / "base", bench.record(PRE_TRAINED, 0), reference)
    yield FINE_TUNED, aligned
    for seed in bench.seeds:
        for arm, overrides in ARMS.items():
            yield arm, _arm(bench, arm, overrides, seed, reference, quiet)


def _reference(bench: Bench) -> tuple[Results, ReferenceStates | None]:
    model, tokenizer = load(bench.pair / "aligned", torch.float32), load_tokenizer(bench.pair / "aligned")
    reference = reference_answers(model, tokenizer, data_tasks(bench.pair))
    return _measured(bench, bench.pair / "aligned", bench.record(FINE_TUNED, 0), reference), reference


def _arm(
    bench: Bench,
    arm: str,
    overrides: Mapping[str, object],
    seed: int,
    reference: ReferenceStates | None,
    quiet: bool,
) -> Results:
    output = bench.checkpoint(arm, seed)
    if not bench.record(arm, seed).exists():
        recipe = bundled_recipe(bench.pair).with_overrides({**overrides, "seed": seed})
        started = time.monotonic()
        try:
            quantize(
                bench.pair / "aligned",
                bench.pair / "base",
                recipe,
                output,
                cache_dir=bench.directory / "cache",
                quiet=quiet,
            )
        except CaqError as error:
            raise type(error)(f"arm {arm}, seed {seed}: {error}") from error
        _note_seconds(bench, arm, seed, time.monotonic() - started)
    return _measured(bench, output, bench.record(arm, seed), reference)


def _note_seconds(bench: Bench, arm: str, seed: int, seconds: float) -> None:
    path = bench.record(arm, seed).with_suffix(".seconds")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{seconds:.1f}\n", encoding="utf-8")


def _measured(bench: Bench, directory: Path, record: Path, reference: ReferenceStates | None) -> Results:
    """Evaluate a saved directory, once."""
    if record.exists():
        return Results.from_dict(json.loads(record.read_text(encoding="utf-8")))
    model, tokenizer = load(directory, torch.float32), load_tokenizer(directory)
    results = evaluate(model, tokenizer, data_tasks(bench.pair), reference=reference, quiet=True)
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(results.as_dict()) + "\n", encoding="utf-8")
    return results


def _print_row(console: Console, name: str, results: Results) -> None:
    found = results.summary()
    shown: Sequence[tuple[str, str]] = (
        ("perplexity", "{:.2f}"),
        ("safety/option-text", "{:.1%}"),
        ("refusal", "{:.1%}"),
        ("over_refusal", "{:.1%}"),
        ("facts", "{:.1%}"),
    )
    cells = "  ".join(f"{key.partition('/')[0]} {form.format(found[key])}" for key, form in shown if key in found)
    console.print(f"{name:<12} {cells}", highlight=False)
