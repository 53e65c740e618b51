"""Wall time and peak memory of `caq quantize` on the bundled pair, and the time of a step under KL-Top and CAL.

    .venv/bin/python benchmarks/cost.py

Steps of the two objectives alternate, so that what else the machine does slows both alike; medians are printed.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from caq.data import token_blocks
from caq.inputs import open_pair
from caq.loading import load_bound, load_tokenizer
from caq.pipeline import plan_student
from caq.recipe import Recipe
from caq.reproduce.pairs import bundled, recipe_for
from caq.run import Run
from caq.teaching import teach
from caq.train import EndToEnd, FitInputs
from caq.walk import block_arguments
from caq.world import World

ROUNDS = 12
STEPS = 4


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        recipe = recipe_for(bundled(directory / "pair"), "cal")
        seconds, peak = whole_run(directory, recipe)
        print(f"caq quantize, CAL: {seconds:.1f} s, peak memory {peak:.2f} GB")
        times = step_times(directory, recipe)
        for name, values in times.items():
            print(f"{name}: {statistics.median(values):.3f} s a step ({len(values)} rounds of {STEPS})")
        ratio = statistics.median(a / b for a, b in zip(times["cal"], times["kl-top"], strict=True))
        print(f"CAL / KL-Top: {ratio:.3f} (median of paired rounds), {torch.get_num_threads()} threads")


def whole_run(directory: Path, recipe: Recipe) -> tuple[float, float]:
    """Return seconds and peak GB of the command in a process of its own."""
    path = directory / "recipe.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    pair, out = directory / "pair", directory / "out"
    command = ["quantize", str(pair / "aligned"), "--base", str(pair / "base")]
    command += ["--recipe", str(path), "-o", str(out), "--cache", str(directory / "cache"), "--quiet"]
    started = time.monotonic()
    subprocess.run([Path(sys.executable).with_name("caq"), *command], check=True, capture_output=True)
    return time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6


def step_times(directory: Path, recipe: Recipe) -> dict[str, list[float]]:
    """Return seconds a step, per round, by objective."""
    pair, world = open_pair(directory / "pair" / "aligned", directory / "pair" / "base"), World()
    ids = token_blocks(recipe.data, load_tokenizer(pair.aligned.path), 0).ids
    run = Run(pair, recipe, world, directory / "cache", load_bound, quiet=True)
    student, _ = plan_student(run)
    arguments = block_arguments(student.bound, ids[:1])
    runs = {name: replace(run, recipe=recipe.with_overrides({"objective.name": name})) for name in ("kl-top", "cal")}
    inputs = {
        name: FitInputs(student, one.recipe.objective, teach(one, ids), ids, arguments, 0, world, quiet=True)
        for name, one in runs.items()
    }
    # A few steps need not be better than the start, and are timed all the same.
    # A validation pass costs the same under both objectives and is no step: one sequence, at start and end only.
    few = {"steps": STEPS, "evaluate_every": STEPS, "validation_samples": 1, "keep": "last"}
    (learner,) = (one.model_copy(update=few) for one in recipe.learn if isinstance(one, EndToEnd))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name in runs:
            started = time.perf_counter()
            learner.learn(inputs[name], student.plan.start({}))
            times[name].append((time.perf_counter() - started) / STEPS)
    return times


if __name__ == "__main__":
    main()
