"""A grid of recipes over seeds on one pair: every cell is quantized, saved, reloaded and measured, once.

A cell's results are kept under a hash of all that decides them, so a stopped grid goes on where it was, and grids that
share a directory share their cells: the CAL row of one table is the α = 0.75 row of another. Checkpoints are opened and
hashed once, the aligned model is loaded once for all cells, and the teachers' targets come from one cache.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch

from caq.errors import CaqError, Diverged
from caq.evaluation import compute_dtype
from caq.families import Bound
from caq.files.cache import digest
from caq.files.whole import write_text
from caq.inputs import Pair, check_recipe, open_pair
from caq.items.tasks import Tasks, check, evaluate, reference_answers
from caq.lm_eval.harness import Benchmarks, Prepared, measure, prepare
from caq.loading import load, load_bound, load_tokenizer
from caq.measure.results import Results
from caq.pipeline import quantize_pair
from caq.recipe import Recipe
from caq.run import Load
from caq.runners.distribution import ReferenceStates

PRE_TRAINED = "Pre-trained"
FINE_TUNED = "Fine-tuned"
FULL_PRECISION = (PRE_TRAINED, FINE_TUNED)

Overrides = Mapping[str, object]


@dataclass(frozen=True)
class Grid:
    """What to run and where it is kept.

    Attributes:
        directory: results, caches and, while they are measured, checkpoints.
        model: the aligned model: directory or hub name.
        base: its pre-trained base.
        tasks: what is measured.
        recipe: what all arms have in common.
        arms: by name, overrides of it.
        seeds: one run of every arm for each.
        benchmarks: what lm-eval measures besides.
        device: None takes the accelerator if there is one.
        keep_checkpoints: leave them in `directory/checkpoints`; a grid of an 8B model's would fill a disk.
    """

    directory: Path
    model: str
    base: str
    tasks: Tasks
    recipe: Recipe
    arms: Mapping[str, Overrides]
    seeds: tuple[int, ...]
    benchmarks: Benchmarks | None = None
    device: str | None = None
    keep_checkpoints: bool = False

    def cell_recipe(self, arm: str, seed: int) -> Recipe:
        """Return the recipe of one cell."""
        return self.recipe.with_overrides({**self.arms[arm], "seed": seed})

    @property
    def place(self) -> torch.device:
        """The device that everything is computed on."""
        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))


@dataclass(frozen=True)
class Cell:
    """One arm under one seed, as it was measured or read back.

    Attributes:
        arm: the row.
        seed: the run; 0 for full precision.
        recipe: the recipe's fingerprint; empty for full precision.
        results: what was measured; None if learning diverged.
        diverged: why it did.
        seconds: how long the cell took; None if it was read back.
    """

    arm: str
    seed: int
    recipe: str
    results: Results | None
    diverged: str | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class _Bench:
    """What the cells of a grid share; `identity` is what decides their results besides the recipe."""

    grid: Grid
    load: Load
    pair: Pair
    identity: str
    reference: Callable[[], ReferenceStates | None]
    prepared: Prepared | None


def cells(grid: Grid, *, quiet: bool = False) -> Iterator[Cell]:
    """Run the grid; yield full precision first, then every arm of every seed, as they come.

    A cell in which learning diverges is a finding and not the grid's end.

    Raises:
        InvalidInput: every problem of the checkpoints, of a recipe or of the task files, before any compute.
    """
    bench = _open(grid)
    assert bench.pair.base is not None
    for name, checkpoint in zip(FULL_PRECISION, (bench.pair.base, bench.pair.aligned), strict=True):
        yield _cell(bench, name, 0, "", partial(_measured, bench, checkpoint.path))
    for seed in grid.seeds:
        for arm in grid.arms:
            recipe = grid.cell_recipe(arm, seed)
            yield _cell(
                bench, arm, seed, recipe.fingerprint(), partial(_quantized, bench, recipe, f"{arm}-seed{seed}", quiet)
            )


def _open(grid: Grid) -> _Bench:
    pair = open_pair(grid.model, grid.base)
    for arm in grid.arms:
        check_recipe(pair, grid.cell_recipe(arm, grid.seeds[0]))
    check(grid.tasks, load_tokenizer(pair.aligned.path))
    prepared = None if grid.benchmarks is None else prepare(grid.benchmarks)
    measured = [asdict(grid.tasks), None if grid.benchmarks is None else asdict(grid.benchmarks)]
    identity = digest(*pair.fingerprints.values(), json.dumps(measured, default=_content, sort_keys=True))
    return _Bench(grid, _shared(load_bound), pair, identity, cache(partial(_reference, grid, pair)), prepared)


def _content(path: object) -> str:
    """Stand for a task's file by what is in it; directories of lm-eval's task files by their name."""
    assert isinstance(path, Path)
    return digest(path.read_bytes()) if path.is_file() else str(path)


def _reference(grid: Grid, pair: Pair) -> ReferenceStates | None:
    path = pair.aligned.path
    model = load(path, compute_dtype(grid.place), grid.place)
    return reference_answers(model, load_tokenizer(path), grid.tasks, grid.directory / "reference")


def _shared(load: Load) -> Load:
    """Return a loader that hands out the model that it brought last again, and holds one at a time."""
    held: dict[tuple[Path, torch.dtype, torch.device], Bound] = {}

    def again(path: Path, dtype: torch.dtype, device: torch.device) -> Bound:
        if (path, dtype, device) not in held:
            held.clear()
            held[path, dtype, device] = load(path, dtype, device)
        bound = held[path, dtype, device]
        # A student with quantized keys leaves its attention behind.
        bound.model.set_attn_implementation("sdpa")
        return bound

    return again


def _cell(bench: _Bench, arm: str, seed: int, recipe: str, run: Callable[[], Results]) -> Cell:
    """Read a cell's record, or run the cell and write it."""
    record = bench.grid.directory / "cells" / f"{digest(bench.identity, recipe or arm)}.json"
    if record.exists():
        earlier = json.loads(record.read_text(encoding="utf-8"))
        results = None if earlier["results"] is None else Results.from_dict(earlier["results"])
        return Cell(arm, seed, recipe, results, earlier["diverged"])
    started = time.monotonic()
    try:
        cell = Cell(arm, seed, recipe, run())
    except Diverged as error:
        cell = Cell(arm, seed, recipe, None, str(error))
    except CaqError as error:
        error.add_note(f"in arm {arm}, seed {seed}")
        raise
    _write(record, cell)
    return replace(cell, seconds=time.monotonic() - started)


def _write(record: Path, cell: Cell) -> None:
    found = None if cell.results is None else cell.results.as_dict()
    data = {"arm": cell.arm, "seed": cell.seed, "diverged": cell.diverged, "results": found}
    write_text(record, json.dumps(data) + "\n")


def _quantized(bench: _Bench, recipe: Recipe, name: str, quiet: bool) -> Results:
    """Quantize, then measure the saved directory."""
    grid, output = bench.grid, bench.grid.directory / "checkpoints" / slug(name)
    quantize_pair(
        bench.pair,
        recipe,
        output,
        load=bench.load,
        cache_dir=grid.directory / "cache",
        device=grid.device,
        quiet=quiet,
    )
    results = _measured(bench, output)
    if not grid.keep_checkpoints:
        shutil.rmtree(output)
    return results


def _measured(bench: _Bench, directory: Path) -> Results:
    grid = bench.grid
    model = load(directory, compute_dtype(grid.place), grid.place)
    tokenizer = load_tokenizer(directory)
    results = evaluate(model, tokenizer, grid.tasks, reference=bench.reference(), quiet=True)
    return results if bench.prepared is None else replace(results, abilities=measure(model, tokenizer, bench.prepared))


def slug(name: str) -> str:
    """Return a name as a part of a path: letters, digits and hyphens."""
    return "-".join(re.findall(r"[a-z0-9.]+", name.lower()))
