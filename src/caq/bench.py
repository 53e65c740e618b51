"""The bundled comparison: CAL and the baselines on the bundled pair, over seeds, paired per item.

`caq demo` runs it once, `caq results` over several seeds. Every arm is a recipe; everything measured is measured on
the saved directory, reloaded. Results are kept per arm and seed, so that a stopped run goes on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console

from caq.checkpoint.inspect import fingerprint, inspect
from caq.errors import CaqError
from caq.evaluate.distribution import ReferenceStates
from caq.evaluate.results import Results
from caq.evaluate.suite import evaluate, reference_answers
from caq.evaluate.table import rich_table, wide_console
from caq.loading import load, load_tokenizer
from caq.pipeline import quantize
from caq.recipe import Recipe, preset
from caq.report import FINE_TUNED, write_report
from caq.testbed.export import data_tasks, export

PRE_TRAINED = "Pre-trained"
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
    "Hadamard": {"transforms.learn": False},
    "MSE": {"objective.name": "mse"},
    "KL": {"objective.name": "kl"},
    "KL-Top": {"objective.name": "kl-top"},
    "CAL": {"objective.name": "cal"},
}


@dataclass(frozen=True)
class Bench:
    """A comparison: where it is kept and what it runs.

    Attributes:
        directory: everything the comparison writes.
        seeds: one run of every arm for each.
        settings: overrides of the bundled recipe for every arm, by dotted key.
        arms: by name, overrides of that.
    """

    directory: Path
    seeds: tuple[int, ...]
    settings: Mapping[str, object] = field(default_factory=dict)
    arms: Mapping[str, Mapping[str, object]] = field(default_factory=lambda: ARMS)

    @property
    def pair(self) -> Path:
        """The exported bundled pair."""
        return self.directory / "pair"

    def recipe(self, arm: str, seed: int) -> Recipe:
        """Return an arm's recipe."""
        return bundled_recipe(self.pair).with_overrides({**self.settings, **self.arms[arm], "seed": seed})

    def checkpoint(self, arm: str, seed: int) -> Path:
        """Return where an arm's checkpoint goes."""
        return self.directory / "checkpoints" / f"{arm.lower()}-seed{seed}"

    def record(self, name: str, seed: int) -> Path:
        """Return where a row's results go."""
        return self.directory / "items" / f"{name.lower()}-seed{seed}.json"


@dataclass(frozen=True)
class _Inputs:
    """What every row is measured against: the aligned model's states, and what identifies the pair."""

    reference: ReferenceStates | None
    pair: str


def bundled_recipe(pair: Path) -> Recipe:
    """Return the recipe of the bundled pair: the default, with sizes for 2.4 million parameters."""
    return preset("default").with_overrides(
        {
            "data.text": str(pair / "calibration.txt"),
            "data.samples": 128,
            "data.length": 128,
            # Every arm with rotations starts from the same one, so that they differ in what is learned alone.
            "transforms.residual": "hadamard",
            "training.steps": 60,
            "training.batch_size": 16,
            "training.micro_batch_size": 16,
            "training.validation_samples": 32,
            "training.gradient_checkpointing": False,
        }
    )


def run_bench(bench: Bench, *, quiet: bool = False) -> dict[str, list[Results]]:
    """Run every arm for every seed; print rows as they come, then the table; write `results.json` and `report.md`."""
    if not (bench.pair / "aligned" / "config.json").exists():
        export(bench.pair)
    console = wide_console()
    found: dict[str, list[Results]] = {}
    for name, results in _rows(bench, quiet):
        found.setdefault(name, []).append(results)
        _print_row(console, name, results)
    console.print(rich_table(found, title=f"Bundled pair, W4A4, seeds {', '.join(map(str, bench.seeds))}"))
    recipes = {arm: [bench.recipe(arm, seed).fingerprint() for seed in bench.seeds] for arm in bench.arms}
    write_report(bench.directory, found, bench.seeds, recipes)
    console.print(f"wrote {bench.directory / 'results.json'} and {bench.directory / 'report.md'}", soft_wrap=True)
    return found


def _rows(bench: Bench, quiet: bool) -> Iterator[tuple[str, Results]]:
    inputs = _reference(bench)
    for name, directory in ((PRE_TRAINED, bench.pair / "base"), (FINE_TUNED, bench.pair / "aligned")):
        yield name, _measured(bench, inputs, directory, bench.record(name, 0), inputs.pair)
    for seed in bench.seeds:
        for arm in bench.arms:
            yield arm, _arm(bench, inputs, arm, seed, quiet)


def _reference(bench: Bench) -> _Inputs:
    aligned = bench.pair / "aligned"
    pair = " ".join(fingerprint(inspect(bench.pair / name)) for name in ("aligned", "base"))
    states = reference_answers(load(aligned, torch.float32), load_tokenizer(aligned), data_tasks(bench.pair))
    return _Inputs(states, pair)


def _arm(bench: Bench, inputs: _Inputs, arm: str, seed: int, quiet: bool) -> Results:
    recipe, output, record = bench.recipe(arm, seed), bench.checkpoint(arm, seed), bench.record(arm, seed)
    identity = f"{inputs.pair} {recipe.fingerprint()}"
    if _recorded(record, identity) is None:
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
            error.add_note(f"in arm {arm}, seed {seed}")
            raise
        _note_seconds(record, time.monotonic() - started)
    return _measured(bench, inputs, output, record, identity)


def _note_seconds(record: Path, seconds: float) -> None:
    # Beside the results, not in them: the same run gives the same results in another time.
    record.parent.mkdir(parents=True, exist_ok=True)
    record.with_suffix(".seconds").write_text(f"{seconds:.1f}\n", encoding="utf-8")


def _measured(bench: Bench, inputs: _Inputs, directory: Path, record: Path, identity: str) -> Results:
    """Evaluate a saved directory, once."""
    earlier = _recorded(record, identity)
    if earlier is not None:
        return earlier
    model, tokenizer = load(directory, torch.float32), load_tokenizer(directory)
    results = evaluate(model, tokenizer, data_tasks(bench.pair), reference=inputs.reference, quiet=True)
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps({"identity": identity, **results.as_dict()}) + "\n", encoding="utf-8")
    return results


def _recorded(record: Path, identity: str) -> Results | None:
    """Return what an earlier run found, if it was the same run."""
    if not record.exists():
        return None
    data = json.loads(record.read_text(encoding="utf-8"))
    return Results.from_dict(data) if data["identity"] == identity else None


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
