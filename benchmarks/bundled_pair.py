"""Wall time and peak memory of `caq quantize` on the bundled pair, and the time of a step under KL-Top and CAL.

    .venv/bin/python benchmarks/bundled_pair.py

Steps of the two objectives alternate, so that what else the machine does slows both alike; medians are printed.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from caq.data import token_blocks
from caq.inputs import open_pair
from caq.loading import load_bound, load_tokenizer
from caq.pipeline import plan_student, teach
from caq.recipe import Recipe
from caq.reproduce.pairs import bundled, recipe_for
from caq.run import Run
from caq.train import EndToEnd, FitInputs
from caq.walk import block_arguments
from caq.workspace import Workspace
from caq.world import World

ROUNDS = 12
STEPS = 4


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        recipe = recipe_for(bundled(directory / "pair"), "default")
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
    # A few steps need not be better than the start, and are timed all the same.
    # A validation pass costs the same under both objectives and is no step: one sequence, at start and end only.
    learner = EndToEnd(
        steps=STEPS,
        batch_size=16,
        micro_batch_size=16,
        gradient_checkpointing=False,
        evaluate_every=STEPS,
        validation_samples=1,
        keep="last",
    )
    lessons = [
        inputs_of(directory, recipe.with_overrides({"objective.name": name, "learn": [learner]}))
        for name in ("kl-top", "cal")
    ]
    times: dict[str, list[float]] = {inputs.objective.name: [] for inputs in lessons}
    for _ in range(ROUNDS):
        for inputs in lessons:
            started = time.perf_counter()
            learner.learn(inputs, inputs.student.plan.start({}))
            times[inputs.objective.name].append((time.perf_counter() - started) / STEPS)
    return times


def inputs_of(directory: Path, recipe: Recipe) -> FitInputs:
    """Return what the recipe's learner is given on the bundled pair."""
    pair = open_pair(directory / "pair" / "aligned", directory / "pair" / "base")
    workspace = Workspace(directory / "timed", {})
    run = Run(pair, recipe, World(), torch.float32, workspace, directory / "cache", load_bound, quiet=True)
    ids = token_blocks(recipe.data, load_tokenizer(pair.aligned.path), recipe.seed).ids
    teacher, (student, _) = teach(run, ids), plan_student(run)
    arguments = block_arguments(student.bound, ids[:1])
    return FitInputs(student, recipe.objective, teacher, ids, arguments, recipe.seed, run.world, quiet=True)


if __name__ == "__main__":
    main()
